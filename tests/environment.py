"""An environment like the one the tests run in, but for one package; and a process that is expected not to start."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_S = 120  # torch from a cold disk


def python_without(package: str, folder: Path) -> Path:
    """The interpreter of a virtual environment where ``package``, a top-level module, is not installed."""
    venv.create(folder, symlinks=True, with_pip=False)
    there = next(folder.glob("lib/python*/site-packages"))
    for packages in site.getsitepackages():
        for entry in Path(packages).iterdir():
            if entry.name.partition(".")[0] != package and not (there / entry.name).exists():
                (there / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def python_with_broken(package: str, folder: Path) -> Path:
    """The same where importing ``package`` raises, as of a package whose parts do not fit together."""
    python = python_without(package, folder)
    broken = next(folder.glob("lib/python*/site-packages")) / package
    broken.mkdir()
    (broken / "__init__.py").write_text("raise AttributeError('parts do not fit')\n")
    return python


def refusal(module: str, env: Mapping[str, str], *arguments: str, python: str | Path = sys.executable) -> list[str]:
    """What ``python -m module`` says of why it does not start, a line each. It must end by itself, and not with 0."""
    command = [python, "-m", module, *arguments]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=START_S, check=False
    )
    assert ended.returncode == 1, ended.stderr
    said = ended.stdout + ended.stderr
    assert "secret" not in said, said
    return [line for line in said.splitlines() if " cannot start: " in line]
