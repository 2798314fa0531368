"""`make` tells a newcomer what there is."""

from __future__ import annotations

import re
import subprocess
import tomllib

from local.stack import ROOT


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    assert [name for name in phony[1].split() if not re.search(rf"^  make {name} +\S", listed, re.M)] == []


def test_the_lock_pins_every_dependency_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for name, extra in project["optional-dependencies"].items() if name != "bench" for each in extra),
    ]
    names = {re.split(r"[\[<>=!~ ]", each)[0].lower() for each in wanted} - {"fewbit"}
    lock = (ROOT / "requirements.lock").read_text().lower()
    assert [name for name in sorted(names) if not re.search(rf"^{name}==[\d.a-z]+$", lock, re.M)] == []


def test_the_lock_names_no_index_and_no_build() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert re.findall(r"^(?!#|[\w.-]+==[\w.]+$).+$", lock, re.M) == []
