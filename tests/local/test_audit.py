"""Known vulnerabilities are an error, and an audit that could not be made is no clean one."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from local.audit import Exempt, Verdict, exceptions, finds_known_vulnerability, judge, without_builds
from local.stack import ROOT

TODAY = date(2026, 11, 27)
CLEAN = {"name": "sound", "version": "1.0", "vulns": []}
HOLE = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1", "GHSA-aaaa"], "fix_versions": ["1.1"]}
HOLED = {"name": "holed", "version": "1.0", "vulns": [HOLE]}
UNKNOWN = {"name": "ours", "version": "1.0", "skip_reason": "not found"}


def exempt(name: str, until: date = TODAY) -> Exempt:
    return Exempt(name, "only the server is affected", until)


def test_a_vulnerability_is_named_with_the_release_that_fixes_it() -> None:
    assert judge([CLEAN, HOLED], [], TODAY) == Verdict(["holed 1.0: PYSEC-2026-1, fixed in 1.1"], [], [])


@pytest.mark.parametrize("name", ["PYSEC-2026-1", "CVE-2026-1", "GHSA-aaaa"])
def test_an_exception_holds_by_any_of_a_vulnerabilitys_names(name: str) -> None:
    assert not any(judge([HOLED], [exempt(name)], TODAY))


def test_an_exception_holds_for_no_other_vulnerability() -> None:
    assert judge([HOLED], [exempt("PYSEC-2026-2")], TODAY).vulnerable


def test_an_exception_expires() -> None:
    over = exempt("PYSEC-2026-1", date(2026, 11, 26))
    assert judge([HOLED], [over], TODAY) == Verdict(["holed 1.0: PYSEC-2026-1, fixed in 1.1"], [], ["PYSEC-2026-1"])


def test_a_release_unknown_to_the_service_is_reported() -> None:
    assert judge([UNKNOWN], [], TODAY).unknown == ["ours"]


def test_a_build_is_looked_up_by_its_release() -> None:
    lock = (
        "torch==2.13.0+cpu ; sys_platform == 'linux' \\\n    --hash=sha256:00\nsix==1.17.0 \\\n    --hash=sha256:11\n"
    )
    assert without_builds(lock) == lock.replace("+cpu", "")


def test_an_exception_needs_a_reason(tmp_path: Path) -> None:
    (file := tmp_path / "exceptions.toml").write_text('[[exception]]\nid = "CVE-1"\nreason = " "\nuntil = 2027-01-31\n')
    with pytest.raises(ValueError, match="no reason is given for CVE-1"):
        exceptions(file)


def test_our_own_exceptions_can_be_read() -> None:
    assert all(exception.until for exception in exceptions(ROOT / "requirements" / "exceptions.toml"))


def test_where_no_service_answers_the_audit_says_so_and_fails_where_it_is_required() -> None:
    """Run as `make check` runs it: with a service it ends with its verdict, without one never in silence."""
    answers = finds_known_vulnerability()
    ended: dict[str, Any] = {
        mode: subprocess.run(
            [sys.executable, "-m", "local.audit"], cwd=ROOT, env=os.environ | {"FEWBIT_AUDIT": mode},
            capture_output=True, text=True, check=False,
        )
        for mode in ("", "required")
    }  # fmt: skip
    assert ("NOT AUDITED" in ended[""].stderr) is not answers
    assert answers or (ended[""].returncode, ended["required"].returncode) == (0, 3)
