"""A comment on a pull request: short, complete, and nothing in it that its words did not ask for."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from fewbit.rendering.markdown import code, report_markdown, text
from tests.fewbit.example import full_report, layer, report

BASE = "https://fewbit.example"
HOSTILE = "a|b`c`<img src=x onerror=alert(1)> @octocat #1 [x](javascript:y) http://evil.example *b*"


@pytest.mark.parametrize("count", [1, 2, 12, 300, 3000])
def test_it_is_short_for_any_number_of_layers(count: int) -> None:
    written = report_markdown(full_report(count), BASE)
    assert len(written.splitlines()) < 60
    assert len(written) < 6000


def test_it_stays_short_when_everything_is_wrong_at_length() -> None:
    held = {"code": "functional", "message": "word " * 400, "remedy": "do " * 400, "patch": {"layers": ["x" * 4000]}}
    rows = [
        layer("block." * 60 + str(index), quantized=False, scheme=None, reason=held | {"code": f"code-{index % 40}"})
        for index in range(300)
    ]
    findings = [
        {"severity": "error", "code": f"found-{index}", "layer": "y" * 500, "message": "z " * 600,
         "remedy": "r " * 600, "patch": {"a": "b" * 5000}}
        for index in range(80)
    ]  # fmt: skip
    gates = [{"gate": f"max_drop.{index}", "limit": 0.1, "value": 1.0, "met": False} for index in range(30)]
    written = report_markdown(full_report(300, layers=rows, findings=findings, gates=gates, verdict="fail"), BASE)
    assert len(written.splitlines()) < 60
    assert len(written) < 6000


def test_the_verdict_and_the_four_numbers_come_first() -> None:
    lines = report_markdown(full_report(), BASE).splitlines()
    assert lines[0].startswith("### ⚠️ Warn: 2 of 2 gates met, 2 findings")
    assert [line.split("|")[1].strip() for line in lines[6:10]] == ["coverage", "size", "accuracy", "speed"]


def test_findings_come_worst_first_and_the_patch_can_be_copied() -> None:
    written = report_markdown(full_report(), BASE)
    assert written.index("nan\\-weight") < written.index("weight\\-outlier") < written.index("fused")
    assert '```json\n{"layers": [{"match": "encoder.layers.0.linear2", "quantize": false}]}\n```' in written


def test_float_layers_are_folded_with_reason_remedy_and_patch() -> None:
    folded = report_markdown(full_report(), BASE).split("<summary>1 of 12 layers stayed float</summary>")[1]
    assert "[excluded\\-by\\-user](<https://fewbit.example/reasons/excluded-by-user>)" in folded
    assert '`{"layers": []}`' in folded.split("</details>")[0]


def rendered(written: str) -> str:
    return str(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(written))


def test_an_uploaders_text_stays_text() -> None:
    finding = {"severity": "error", "code": "x", "layer": HOSTILE, "message": HOSTILE, "remedy": HOSTILE}
    hostile = report(
        findings=[finding],
        layers=[layer(HOSTILE, error={"output_sqnr_db": 1.0, "sensitivity": 0.1}), layer("</details>")],
        model={"id": HOSTILE, "sha256": "", "format": "pt2"},
    )
    page = rendered(report_markdown(hostile, BASE))
    assert "<img" not in page
    assert "javascript:y</a>" not in page
    assert 'href="javascript' not in page
    assert "@octocat" not in re.sub(r"<code>.*?</code>", "", page)
    assert "<em>b</em>" not in page
    assert page.count("<details>") == page.count("</details>")


@pytest.mark.parametrize(
    "words", [HOSTILE, "a\nb", "`", "``x``", "", "| --- |", "\\", "&lt;", "日本語", "~~x~~", "# h"]
)
def test_escaped_text_reads_as_it_was(words: str) -> None:
    shown = rendered(text(words, 500))
    plain = re.sub(r"<[^>]+>", "", shown).strip().replace("\u200b", "")
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        plain = plain.replace(entity, sign)
    assert plain == " ".join(words.split())


@pytest.mark.parametrize("words", ["a`b", "``", "`x`", "x | y", "<b>"])
def test_code_in_a_table_stays_in_its_cell(words: str) -> None:
    page = rendered(f"| a | b |\n|---|---|\n| {code(words)} | last |\n")
    assert page.count("<td>") == 2
    assert "<td>last</td>" in page
