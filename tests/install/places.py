"""Where environments are built: this machine with the Python at hand, or a Debian of its own with Debian's Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGES = ("python3", "python3-venv", "ca-certificates")
MINUTES = 60.0
ENTER = """
set -e; root=$1; shift
mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root$(dirname "$1")"; touch "$root$1"; fi
  mount --bind "$1" "$root$1"; shift
done
shift; exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Place:
    """``folder`` is what commands run there see as ``seen``. ``entry`` is the command that runs another one there."""

    folder: Path
    seen: Path
    python: str
    entry: tuple[str, ...] = ()
    keeps_environment: bool = True

    def command(self, *words: str | Path, cwd: Path | None = None, **env: str) -> list[str]:
        """What to start here so that ``words`` run there, in ``cwd`` as seen there."""
        clean = [] if self.keeps_environment else ["-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
        settings = [f"{name}={value}" for name, value in env.items()]
        return [*self.entry, "env", "-C", str(cwd or self.seen), *clean, *settings, *map(str, words)]

    def run(self, *words: str | Path, cwd: Path | None = None, **env: str) -> str:
        """What it printed. Fails the test when the command fails."""
        done = subprocess.run(
            self.command(*words, cwd=cwd, **env), text=True, check=False, timeout=15 * MINUTES,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            pytest.fail(f"{' '.join(map(str, words))} ended with {done.returncode}:\n{done.stdout[-6000:]}")
        return done.stdout


def this_machine(folder: Path) -> Place:
    return Place(folder, folder, sys.executable)


def debian(release: str, root: Path) -> Place:
    """A minimal Debian in ``root``, with pip configured as it is here. Needs root, debootstrap and the network."""
    include = ",".join(PACKAGES)
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={include}", release, str(root)],
                   check=True, timeout=15 * MINUTES, stdout=subprocess.DEVNULL)  # fmt: skip
    settings = pip_settings()
    (root / "etc/pip.conf").write_text(
        "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )
    lent = sorted({str(path) for value in settings.values() for path in named_paths(value)})
    entry = ("unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh", str(root), *lent, "--")
    (root / "srv").mkdir(exist_ok=True)
    return Place(root / "srv", Path("/srv"), "/usr/bin/python3", entry, keeps_environment=False)


def pip_settings() -> dict[str, str]:
    """pip's configuration here, its files and PIP_ variables taken together."""
    command: Sequence[str] = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    settings = dict(re.findall(r"^(?:global|install)\.([\w-]+)='(.*)'$", listed, re.M))
    return settings | dict(re.findall(r"^:env:\.([\w-]+)='(.*)'$", listed, re.M))  # which pip too lets win


def named_paths(value: str) -> Iterator[Path]:
    """The files and folders that a value of pip's configuration names; for an index, the folder beside its files."""
    for word in value.split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists() and path != Path(os.devnull):
            yield path.parent if word.startswith("file://") else path
