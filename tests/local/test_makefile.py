"""`make` tells a newcomer what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from local.stack import ROOT

LOCKS = sorted(lock.stem for lock in (ROOT / "requirements").glob("*.lock"))


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    assert [name for name in phony[1].split() if not re.search(rf"^  make {name} +\S", listed, re.M)] == []


def locked(name: str) -> list[tuple[str, list[str]]]:
    """The distributions that a lock pins, with their hashes; one of several builds stands there several times."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text().lower()
    pins = re.findall(r"^([\w.-]+)==[\w.+]+(?: ; [^\n\\]+)?((?: \\\n\s+--hash=\S+)*)$", text, re.M)
    return [(pin, re.findall(r"--hash=sha256:([0-9a-f]{64})", rest)) for pin, rest in pins]


def wanted(*extras: str) -> set[str]:
    """What pyproject.toml asks for, our own extras followed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    names: set[str] = set()
    waiting = [*project["dependencies"], *(requirement for extra in extras for requirement in optional[extra])]
    while waiting:
        requirement = waiting.pop()
        if inner := re.match(r"fewbit\[([\w,]+)\]", requirement):
            waiting += [requirement for extra in inner[1].split(",") for requirement in optional[extra]]
        else:
            names.add(re.split(r"[\[<>=!~ ]", requirement)[0].lower())
    return names


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("dev", ("dev",)),
        ("bench", ("dev", "bench")),
        ("gateway", ("service",)),
        ("worker", ("workers",)),
        ("client", ()),
        ("runtime", ("torch",)),
    ],
)
def test_a_lock_pins_every_dependency_of_its_extras(lock: str, extras: tuple[str, ...]) -> None:
    assert sorted(wanted(*extras) - {pin for pin, _ in locked(lock) + locked("torch")}) == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_its_hashes_and_no_lock_names_an_index(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    pins = locked(lock)
    assert len(pins) == len(re.findall(r"^[\w.-]+==", text, re.M)) > 0
    assert [name for name, hashes in pins if not hashes] == []
    assert "://" not in text


@pytest.mark.parametrize("lock", ["bench", "gateway", "worker", "client", "runtime"])
def test_the_locks_agree(lock: str) -> None:
    def pins(name: str) -> dict[str, str]:
        return dict(re.findall(r"^([\w.-]+)==([\w.+]+)", (ROOT / "requirements" / f"{name}.lock").read_text(), re.M))

    tested = pins("dev")
    assert {name: version for name, version in pins(lock).items() if tested.get(name, version) != version} == {}


class Machine:
    """A folder with what `make setup` reads, and a PATH that holds the named interpreters and nothing else."""

    def __init__(self, folder: Path, **interpreters: str) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "requirements", folder / "requirements")
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "path").mkdir()
        for name, script in interpreters.items():
            file = folder / "path" / name.replace("_", ".")
            file.write_text(f"#!/bin/sh\n{script}\n")
            file.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        make = shutil.which("make") or "make"
        command = [make, "--no-print-directory", "-C", str(self.folder), "-f", str(ROOT / "Makefile"), *arguments]
        environment = {"PATH": str(self.folder / "path")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


SUPPORTED, TOO_OLD = f'exec "{sys.executable}" "$@"', "exit 1"


def test_the_environment_is_made_with_python3_where_that_is_a_supported_one(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=SUPPORTED, python3_11=SUPPORTED, python3_14=SUPPORTED)
    assert "\npython3 -m venv .venv" in machine.make("-n", ".venv/bin/python").stdout


def test_else_with_a_supported_one_that_is_on_path(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=TOO_OLD, python3_13=SUPPORTED, python3_14=SUPPORTED)
    assert "\npython3.13 -m venv .venv" in machine.make("-n", ".venv/bin/python").stdout


@pytest.mark.parametrize("interpreters", [{}, {"python3": TOO_OLD}])
def test_without_a_supported_python_make_says_which_are(tmp_path: Path, interpreters: dict[str, str]) -> None:
    done = Machine(tmp_path, **interpreters).make(".venv/bin/python")
    assert done.returncode != 0
    assert "Fewbit needs Python 3.11 to 3.14, and what is on PATH is none. Name one: make PYTHON=<path>" in done.stdout


def test_a_python_given_by_name_must_be_a_supported_one_too(tmp_path: Path) -> None:
    done = Machine(tmp_path, python3=SUPPORTED, old=TOO_OLD).make(".venv/bin/python", "PYTHON=old")
    assert done.returncode != 0
    assert "Fewbit needs Python 3.11 to 3.14, and old is none." in done.stdout


def test_an_environment_without_pip_does_not_stay(tmp_path: Path) -> None:
    """Debian's python3 without python3-venv leaves one behind."""
    debian = f'case "$*" in *venv*) mkdir -p .venv/bin; touch .venv/bin/python; exit 1;; esac; {SUPPORTED}'
    machine = Machine(
        tmp_path, python3=debian, mkdir='exec /bin/mkdir "$@"', touch='exec /usr/bin/touch "$@"', rm='exec /bin/rm "$@"'
    )
    done = machine.make(".venv/bin/python")
    assert done.returncode != 0
    assert "python3 cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" in done.stdout
    assert not (tmp_path / ".venv").exists()
