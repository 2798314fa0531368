"""`make setup`, with which `make demo` begins, on a machine whose pip is as it came: `make images` runs it.

PyTorch's own index is stood in for by one on loopback that has the CPU build and nothing else.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from local.stack import ROOT
from tests.install.indexes import serve

pytestmark = pytest.mark.images


def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_torch", ROOT / "requirements" / "install_torch.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cpu_build(tmp_path: Path) -> Path:
    """The wheel for this machine, from where the installer would take it."""
    install_torch, folder = installer(), tmp_path / "wheel"
    (wanted := tmp_path / "torch.txt").write_text(install_torch.requirement())
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-r", str(wanted), "-d", str(folder)]
    for place in ([], ["--index-url", os.environ.get("TORCH_INDEX") or install_torch.PUBLIC_INDEX]):
        if subprocess.run([*command, *place], check=False).returncode == 0:
            break
    (wheel,) = folder.glob("torch-*.whl")
    return wheel


def checkout(folder: Path) -> Path:
    """What git knows, as a clone would have it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_stock_pip_downloads_one_torch_and_it_is_the_cpu_build(tmp_path: Path, cpu_build: Path) -> None:
    folder = checkout(tmp_path / "fewbit")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORCH_", "MAKE"))}
    with serve(cpu_build) as index:
        settings = {"PIP_CONFIG_FILE": os.devnull, "TORCH_INDEX": index.url, "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            ["make", "setup", f"PYTHON={sys.executable}"], cwd=folder, env=ours | settings,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert index.downloads() == [cpu_build.name]
    fetched = [line.strip() for line in done.stdout.splitlines() if "Downloading" in line and "torch-" in line]
    assert len(fetched) == 1
    assert fetched[0].startswith(f"Downloading {index.url.removesuffix('/simple')}/files/torch-")
    imported = [str(folder / ".venv/bin/python"), "-c", "import torch; print(torch.__version__, torch.version.cuda)"]
    assert subprocess.run(imported, capture_output=True, text=True, check=True).stdout == "2.13.0+cpu None\n"
