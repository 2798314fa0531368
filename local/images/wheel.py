"""The wheel as its user gets it: built from a copy of the sources, installed alone into an empty environment."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from local.images.engine import output
from local.stack import ROOT

SOURCES = ("pyproject.toml", "README.md", "fewbit")
SCRIPT = """
import importlib.util, sys
from fewbit.client import Client

if importlib.util.find_spec("torch"):
    sys.exit("torch came with the wheel")
with Client() as client:
    job = client.create_job({"model": client.upload_model(sys.argv[1]).id})
    ended = client.wait(job)
    print(ended.status, *(artifact.kind for artifact in client.artifacts(job)))
"""


@dataclass(frozen=True)
class Installed:
    """An environment that has the wheel and what it asks for."""

    wheel: Path
    folder: Path

    def cli(self, *arguments: str, url: str, key: str) -> str:
        """What ``fewbit`` printed. Raises ``EngineError``."""
        return output([str(self.folder / "bin" / "fewbit"), *arguments], _env(url, key), 120)

    def script(self, *arguments: str, url: str, key: str) -> str:
        """What a program with the client printed: ``succeeded``, and the kinds of artifact. Raises ``EngineError``."""
        return output([str(self.folder / "bin" / "python"), "-I", "-c", SCRIPT, *arguments], _env(url, key), 120)


def install(folder: Path) -> Installed:
    """Build and install beneath ``folder``. Raises ``EngineError``."""
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    sources = folder / "sources"
    sources.mkdir()
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, sources / name)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(sources)]
    output([sys.executable, *pip, *build], os.environ, 300)
    (wheel,) = folder.glob("*.whl")
    output([sys.executable, "-m", "venv", str(folder / "venv")], os.environ, 300)
    output([str(folder / "venv" / "bin" / "python"), *pip, "install", str(wheel)], os.environ, 600)
    return Installed(wheel, folder / "venv")


def _env(url: str, key: str) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "FEWBIT_URL": url, "FEWBIT_KEY": key}
