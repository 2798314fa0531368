"""`python -m local.audit`: look up known vulnerabilities of the pinned releases, with pip-audit.

pip-audit succeeds when its service does not know a package, and also when a proxy or mirror answers instead of the
service, so an audit that did not happen would look like one that found nothing. So the first question is about a
release whose vulnerabilities have been known for ten years; the rest counts only if those are found.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
LOCKS = ("torch.lock", "dev.lock")  # the other locks are subsets of these, or for benchmarks only
KNOWN_BAD = "jinja2==2.4.1"
TIMEOUT_SECONDS = 300


class Exempt(NamedTuple):
    """A known vulnerability that is accepted until a day, and why."""

    id: str
    reason: str
    until: date


class Verdict(NamedTuple):
    vulnerable: list[str]  # name, version, id, releases that fix it
    unknown: list[str]  # releases that the service has no record of
    expired: list[str]


def exceptions(file: Path) -> list[Exempt]:
    """The exceptions in ``file``. Raises ``ValueError`` for one without a reason."""
    exempt = [Exempt(**entry) for entry in tomllib.loads(file.read_text()).get("exception", [])]
    if unexplained := [exception.id for exception in exempt if not exception.reason.strip()]:
        raise ValueError(f"{file.name}: no reason is given for {', '.join(unexplained)}")
    return exempt


def judge(dependencies: list[dict[str, Any]], exempt: list[Exempt], today: date) -> Verdict:
    """The verdict on pip-audit's records, without the exceptions that still hold."""
    exempted = {exception.id for exception in exempt if exception.until >= today}
    vulnerable = [
        _vulnerability_line(release, found)
        for release in dependencies
        for found in release.get("vulns", [])
        if not exempted & {found["id"], *found.get("aliases", [])}
    ]
    unknown = [release["name"] for release in dependencies if "skip_reason" in release]
    return Verdict(vulnerable, unknown, [exception.id for exception in exempt if exception.until < today])


def _vulnerability_line(release: dict[str, Any], found: dict[str, Any]) -> str:
    fixed = ", ".join(found["fix_versions"]) or "no release"
    return f"{release['name']} {release['version']}: {found['id']}, fixed in {fixed}"


def without_builds(lock: str) -> str:
    """``2.13.0`` for ``2.13.0+cpu``: vulnerabilities are known by release, not by build."""
    return re.sub(r"^([\w.-]+==[\w.]+)\+\w+", r"\1", lock, flags=re.M)


def run_pip_audit(*files: Path) -> list[dict[str, Any]]:
    """pip-audit's records of the releases that the files pin; empty if it could not ask its service."""
    with tempfile.TemporaryDirectory(prefix="fewbit-audit-") as name:
        arguments: list[str] = []
        for file in files:
            (requirements := Path(name) / file.name).write_text(without_builds(file.read_text()))
            arguments += ["-r", str(requirements)]
        command = [sys.executable, "-m", "pip_audit", *arguments, "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    return json.loads(done.stdout)["dependencies"] if done.stdout.startswith("{") else []


def finds_known_vulnerability() -> bool:
    """Whether pip-audit's service reports the vulnerabilities of ``KNOWN_BAD``."""
    with tempfile.TemporaryDirectory(prefix="fewbit-audit-") as name:
        (canary := Path(name) / "canary.txt").write_text(f"{KNOWN_BAD}\n")
        return any(release.get("vulns") for release in run_pip_audit(canary))


def main() -> int:
    """Exit code: 0 no findings, 1 findings, 3 the service could not be asked and FEWBIT_AUDIT=required."""
    exempt = exceptions(REQUIREMENTS / "exceptions.toml")
    if not finds_known_vulnerability():
        print(
            f"NOT AUDITED: no vulnerability service answers here ({KNOWN_BAD} should have been reported).\n"
            "Run `make check` where PyPI's JSON interface can be reached; FEWBIT_AUDIT=required makes this an error.",
            file=sys.stderr,
        )
        return 3 if os.environ.get("FEWBIT_AUDIT") == "required" else 0
    found = judge(run_pip_audit(*(REQUIREMENTS / name for name in LOCKS)), exempt, datetime.now(UTC).date())
    for line in found.vulnerable:
        print(f"vulnerable: {line}", file=sys.stderr)
    for name in found.unknown:
        print(f"not audited: the service has no record of {name}", file=sys.stderr)
    for name in found.expired:
        print(f"exceptions.toml: the exception for {name} has expired", file=sys.stderr)
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main())
