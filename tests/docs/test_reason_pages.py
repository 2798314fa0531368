"""Every code has its page, every page its code, and what a page shows runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewbit.contract.reason_codes import CODES
from tests.workers.engine.situations.found import FOUND

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "reasons"
SECTIONS = ("## What happens", "## See it", "## What to do", "## In the report")
SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)
MAKERS = {"Reason", "Finding", "Remark", "_eager", "_in_vain"}
REPRODUCED_ELSEWHERE = {  # code: the test that makes it
    "excluded-by-user": "tests/workers/engine/explanation/test_reasons.py",
    "analyze-only": "tests/workers/engine/test_pipeline.py",
    "shape-constraint": "tests/workers/engine/explanation/test_reasons.py",
    "opaque-op": "tests/workers/engine/explanation/test_reasons.py",
    "layout": "tests/workers/engine/explanation/test_reasons.py",
    "train-mode": "tests/workers/engine/explanation/test_reasons.py",
    "custom-operator": "tests/workers/engine/explanation/test_reasons.py",
    "synthetic-data": "tests/workers/engine/explanation/test_reasons.py",
    "evaluated-on-calibration": "tests/workers/engine/explanation/test_reasons.py",
    "calibrated-on-evaluation": "tests/workers/engine/explanation/test_reasons.py",
    "fx-leaf": "tests/workers/engine/eager/test_backend.py",
    "fx-no-pattern": "tests/workers/engine/explanation/test_reasons.py",
    "not-swapped": "tests/workers/engine/explanation/test_reasons.py",
    "shared-module": "tests/workers/engine/eager/test_backend.py",
    "artifact-not-written": "tests/workers/engine/artifacts/test_onnx.py",
    "not-calibrated": "tests/workers/engine/reporting/test_defects.py",
    "activation-outlier": "tests/workers/engine/reporting/test_defects.py",
    "metric-not-applicable": "tests/workers/engine/test_pipeline.py",
    **dict.fromkeys(("saturation", "low-sqnr", "slower-than-float"), "tests/workers/engine/reporting/test_measured.py"),
    **dict.fromkeys(
        ("calibration-drift", "calibration-too-small", "duplicate-samples", "constant-input", "non-finite-input"),
        "tests/workers/engine/calibration/test_activation_statistics.py",
    ),
}


def text(code: str) -> str:
    return (PAGES / f"{code}.md").read_text()


def test_pages_and_codes_are_the_same_set() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} - {"README"} == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_a_page_has_its_title_and_its_sections(code: str) -> None:
    page = text(code)
    assert page.startswith(f"# {code}: {CODES[code].title}\n")
    assert [line for line in page.splitlines() if line in SECTIONS] == list(SECTIONS)
    assert ("Not in reports." in page) == (not CODES[code].places)
    assert f"[{code}]({code}.md): {CODES[code].title}" in text("README")


def test_what_the_pages_show_runs() -> None:
    """All in one interpreter: most of the time is torch's import."""
    snippets = {code: SNIPPET.findall(text(code)) for code in CODES}
    assert all(found or "```json" in text(code) for code, found in snippets.items())
    script = "import warnings; warnings.simplefilter('ignore')\n" + "\n".join(
        f"print({code!r}); exec({snippet!r}, {{'__name__': 'page'}})"
        for code, found in snippets.items()
        for snippet in found
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-300:] + ran.stderr[-1500:]


def test_the_engine_emits_no_code_that_is_not_in_the_catalogue() -> None:
    assert emitted() - set(CODES) == set()


def test_every_code_a_report_can_carry_is_reproduced() -> None:
    shown = {code for code, _, _ in FOUND.values()} | set(REPRODUCED_ELSEWHERE)
    assert {code for code, page in CODES.items() if page.places} - shown == set()
    for code, test in REPRODUCED_ELSEWHERE.items():
        assert code in (ROOT / test).read_text()


def emitted() -> set[str]:
    """Every literal that a maker of reasons or findings is given as its code."""
    return {
        code for path in (ROOT / "workers" / "engine").rglob("*.py") for code in codes_in(ast.parse(path.read_text()))
    }


def codes_in(tree: ast.AST) -> Iterator[str]:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if getattr(call.func, "id", "") in MAKERS:
            named = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
            for given in named or call.args[:1]:
                if isinstance(given, ast.Constant):
                    yield str(given.value)
