"""`python -m local.audit`: known vulnerabilities in what the locks pin, by pip-audit.

pip-audit ends with success where its service does not know a package, and so too where a proxy or a mirror answers in
the service's place: an audit that could not be made would look like one that found nothing. So a release with holes
known for ten years is asked about first, and only if that is found does the rest count.
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
LOCKS = ("torch.lock", "dev.lock")  # the other locks hold subsets of these, or only benchmarks
KNOWN_BAD = "jinja2==2.4.1"
TIMEOUT_SECONDS = 300


class Exempt(NamedTuple):
    """A known vulnerability that may stay until a day, and why."""

    id: str
    reason: str
    until: date


class Verdict(NamedTuple):
    vulnerable: list[str]  # name, version, id, releases that mend it
    unknown: list[str]  # releases that the service has no record of
    expired: list[str]


def exceptions(file: Path) -> list[Exempt]:
    """The written exceptions. ValueError: one of them has no reason."""
    read = [Exempt(**entry) for entry in tomllib.loads(file.read_text()).get("exception", [])]
    if nameless := [exception.id for exception in read if not exception.reason.strip()]:
        raise ValueError(f"{file.name}: no reason is given for {', '.join(nameless)}")
    return read


def judge(dependencies: list[dict[str, Any]], exempt: list[Exempt], today: date) -> Verdict:
    """What pip-audit's JSON says of each release, less the exceptions that still hold."""
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
    """``2.13.0`` for ``2.13.0+cpu``: what is known is known of releases."""
    return re.sub(r"^([\w.-]+==[\w.]+)\+\w+", r"\1", lock, flags=re.M)


def audited(*files: Path) -> list[dict[str, Any]]:
    """pip-audit's record of each release that the files pin; empty where it could not ask."""
    with tempfile.TemporaryDirectory(prefix="fewbit-audit-") as name:
        chosen = []
        for file in files:
            (asked := Path(name) / file.name).write_text(without_builds(file.read_text()))
            chosen += ["-r", str(asked)]
        command = [sys.executable, "-m", "pip_audit", *chosen, "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    return json.loads(done.stdout)["dependencies"] if done.stdout.startswith("{") else []


def finds_the_known() -> bool:
    """Whether the service that pip-audit asks knows of a vulnerability at all."""
    with tempfile.TemporaryDirectory(prefix="fewbit-audit-") as name:
        (canary := Path(name) / "canary.txt").write_text(f"{KNOWN_BAD}\n")
        return any(release.get("vulns") for release in audited(canary))


def main() -> int:
    """0: nothing known against any release; 1: something; 3: it could not be asked, and FEWBIT_AUDIT=required."""
    exempt = exceptions(REQUIREMENTS / "exceptions.toml")
    if not finds_the_known():
        print(
            f"NOT AUDITED: no vulnerability service answers here ({KNOWN_BAD} should have been reported).\n"
            "Run `make check` where PyPI's JSON interface can be reached; FEWBIT_AUDIT=required makes this an error.",
            file=sys.stderr,
        )
        return 3 if os.environ.get("FEWBIT_AUDIT") == "required" else 0
    found = judge(audited(*(REQUIREMENTS / name for name in LOCKS)), exempt, datetime.now(UTC).date())
    for line in found.vulnerable:
        print(f"vulnerable: {line}", file=sys.stderr)
    for name in found.unknown:
        print(f"not audited: the service has no record of {name}", file=sys.stderr)
    for name in found.expired:
        print(f"exceptions.toml: {name} was to be looked at again by now", file=sys.stderr)
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main())
