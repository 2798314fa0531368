"""`make` tells a newcomer what there is."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest

from local.stack import ROOT


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    assert [name for name in phony[1].split() if not re.search(rf"^  make {name} +\S", listed, re.M)] == []


def locked(name: str) -> dict[str, list[str]]:
    """The hashes of each distribution that a lock pins."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text().lower()
    return {pin: re.findall(r"--hash=sha256:([0-9a-f]{64})", rest) for pin, rest in
            re.findall(r"^([\w.-]+)==[\w.+]+((?: \\\n\s+--hash=\S+)*)$", text, re.M)}  # fmt: skip


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
    [("dev", ("dev",)), ("bench", ("dev", "bench")), ("gateway", ("service",)), ("worker", ("workers",))],
)
def test_a_lock_pins_every_dependency_of_its_extras(lock: str, extras: tuple[str, ...]) -> None:
    assert sorted(wanted(*extras) - set(locked(lock)) - set(locked("torch"))) == []


@pytest.mark.parametrize("lock", ["torch", "dev", "bench", "gateway", "worker"])
def test_every_pin_has_its_hashes_and_no_lock_names_an_index(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    pins = locked(lock)
    assert len(pins) == len(re.findall(r"^[\w.-]+==", text, re.M)) > 0
    assert [name for name, hashes in pins.items() if not hashes] == []
    assert "://" not in text


@pytest.mark.parametrize("lock", ["bench", "gateway", "worker"])
def test_the_locks_agree(lock: str) -> None:
    def pins(name: str) -> dict[str, str]:
        return dict(re.findall(r"^([\w.-]+)==([\w.+]+)", (ROOT / "requirements" / f"{name}.lock").read_text(), re.M))

    tested = pins("dev")
    assert {name: version for name, version in pins(lock).items() if tested.get(name, version) != version} == {}
