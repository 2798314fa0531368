"""The wheel that users install, built from a copy of what it is made of, and the environments they install it into."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from local.stack import ROOT
from tests.install.images import Environment, build
from tests.install.places import Place


def build_wheel(folder: Path) -> Path:
    """With the setuptools that is installed here, so that no network is needed."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "fewbit", source / "fewbit", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True)
    (wheel,) = folder.glob("fewbit-*.whl")
    return wheel


def install(place: Place, lock: str, wheel: Path) -> Environment:
    """The environment of the ``client`` or ``runtime`` lock, and the wheel with nothing else: pip finds it complete."""
    made = build(place, lock, torch=lock == "runtime")
    shutil.copy(wheel, place.folder / lock)
    made.python("-m", "pip", "install", "--quiet", "--no-deps", place.seen / lock / wheel.name)
    made.python("-m", "pip", "check")
    return made
