"""Install torch's CPU build into the environment whose Python runs this: ``python requirements/install_torch.py``.

PyPI's torch for Linux is built for CUDA: half a gigabyte, and gigabytes more that it asks for. Its CPU builds have the
local version ``+cpu``, which PyPI cannot hold, so that is what is asked for: first wherever pip looks by itself, then
on PyTorch's own index. A place that has none costs the listing of its files, never a wheel.

Environment: ``TORCH_INDEX`` is an index to ask instead of PyTorch's, ``TORCH_PIP`` more arguments for pip, such as
``--no-index --find-links FOLDER``. A CPU build that is installed already stays.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PUBLIC_INDEX = "https://download.pytorch.org/whl/cpu"
LOCK = Path(__file__).with_name("torch.lock")
PIN = re.compile(
    r"^torch==(\S+) ; sys_platform == '(\w+)' and platform_machine == '(\w+)' and python_version == '([\d.]+)' \\\n"
    r" +--hash=sha256:([0-9a-f]{64})$",
    re.M,
)
PIP = [sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
NOT_OFFERED = (
    "No matching distribution found",
    "ResolutionImpossible",
)  # the second where a constraint names torch too
OTHER_HASH = "DO NOT MATCH THE HASHES"


class InstallError(Exception):
    """Why torch could not be installed, and what to do."""


def here() -> tuple[str, str, str]:
    """Platform, machine and Python, as torch.lock names them."""
    return sys.platform, platform.machine(), "{}.{}".format(*sys.version_info)


def hashes() -> dict[tuple[str, str, str], tuple[str, str]]:
    """Version and SHA-256 of the build for each platform, machine and Python in torch.lock."""
    found = PIN.findall(LOCK.read_text())
    return {(system, machine, python): (version, digest) for version, system, machine, python, digest in found}


def release() -> str:
    """The version without its local part: ``2.13.0``."""
    version, _ = next(iter(hashes().values()))
    return version.partition("+")[0]


def requirement() -> str:
    """What pip is told to install: with its hash, where torch.lock has one for this machine."""
    if here() in hashes():
        return "torch=={} --hash=sha256:{}\n".format(*hashes()[here()])
    return f"torch=={release()}{'+cpu' if sys.platform == 'linux' else ''}\n"


def installed() -> str | None:
    """The version of the CPU build of this release that is installed, if it is."""
    importlib.invalidate_caches()
    try:
        torch = distribution("torch")
    except PackageNotFoundError:
        return None
    public, _, local = torch.version.partition("+")
    needs_cuda = any(re.match(r"nvidia|cuda|triton", name) for name in torch.requires or [])
    return torch.version if public == release() and local in ("", "cpu") and not needs_cuda else None


def install(*options: str) -> str | None:
    """Let pip install it. None, or what pip said where no build is offered. Raises ``InstallError`` otherwise."""
    with tempfile.TemporaryDirectory(prefix="fewbit-torch-") as folder:
        (wanted := Path(folder) / "torch.txt").write_text(requirement())
        command = [*PIP, "-r", str(wanted), *options, *shlex.split(os.environ.get("TORCH_PIP", ""))]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        return None
    if any(words in done.stderr for words in NOT_OFFERED):
        return done.stderr
    sys.stderr.write(done.stderr)
    if OTHER_HASH in done.stderr:
        raise InstallError(
            f"The torch {release()} offered here is not the one in requirements/torch.lock, so it was not installed. "
            "Name an index that has PyTorch's own builds: TORCH_INDEX=<address>."
        )
    raise InstallError("pip could not install torch: what it said is above.")


def install_from_somewhere() -> None:
    """Ask where pip looks by itself, then the index. Raises ``InstallError``."""
    index = os.environ.get("TORCH_INDEX") or PUBLIC_INDEX
    print(f"Looking for a CPU build of torch {release()} where pip looks by itself ...", flush=True)
    if install() is None:
        return
    print(f"None there. Taking it from {index} ...", flush=True)
    if (answer := install("--index-url", index)) is not None:
        sys.stderr.write(answer)
        raise InstallError(
            f"No CPU build of torch {release()} for Python {here()[2]} on {here()[0]} {here()[1]}, neither where pip "
            f"looks by itself nor at {index}. If that address cannot be reached from here, name one that has the "
            "build: TORCH_INDEX=<address>, or TORCH_PIP='--no-index --find-links <folder>'."
        )


def main() -> int:
    """0: a CPU build is there. 1: it is not, and the last line says why."""
    if version := installed():
        print(f"torch {version} is installed already.")
        return 0
    try:
        install_from_somewhere()
    except InstallError as error:
        print(error, file=sys.stderr)
        return 1
    if not (version := installed()):
        print("pip installed a torch that is no CPU build. Look at TORCH_PIP and pip's configuration.", file=sys.stderr)
        return 1
    checked = "Its hash is the one in requirements/torch.lock."
    unknown = "Its hash was NOT CHECKED: requirements/torch.lock has none for this machine."
    print(f"torch {version} is installed. {checked if here() in hashes() else unknown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
