"""The memory and disk of a running child.

The kernel limits address space and the size of one file, but neither resident memory nor a whole folder, so the watcher
measures these two while the child runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from fewbit.contract.problems import JobProblem
from workers.sandbox.limits import Limits

_DISK_EVERY_S = 0.5
_OWN_MEMORY = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)


class LimitExceeded(Exception):
    """The child took more memory or disk than it may."""

    def __init__(self, slug: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = JobProblem.of(slug, detail)


@dataclass
class UsageCheck:
    """Compares what one child uses with what it may."""

    pid: int
    folder: Path
    limits: Limits
    _disk_measured_at: float = field(default=0.0)

    def check(self) -> None:
        """Raises ``LimitExceeded``. The disk is measured twice a second at most."""
        used = resident_bytes(self.pid)
        if used > self.limits.memory:
            detail = f"The job took {_mebibytes(used)}; it may take {_mebibytes(self.limits.memory)}."
            raise LimitExceeded("out-of-memory", detail)
        if time.monotonic() - self._disk_measured_at >= _DISK_EVERY_S:
            self._check_disk()
            self._disk_measured_at = time.monotonic()

    def _check_disk(self) -> None:
        size, files = disk_usage(self.folder, self.limits.files)
        if size > self.limits.disk or files > self.limits.files:
            taken = f"{_mebibytes(size)} in {files} files or more"
            allowed = f"{_mebibytes(self.limits.disk)} in {self.limits.files}"
            detail = f"The model wrote {taken} into its folder; it may write {allowed}."
            raise LimitExceeded("sandbox-violation", detail)


def resident_bytes(pid: int) -> int:
    """Resident memory that is not pages of files, shared memory without a file included; 0 for an ended process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * sum(map(int, _OWN_MEMORY.findall(status)))


def disk_usage(folder: Path, most_files: int) -> tuple[int, int]:
    """Bytes on disk and number of entries beneath ``folder``; stops counting past ``most_files``."""
    size = entries = 0
    folders = [str(folder)]
    while folders and entries <= most_files:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as found:
            for entry in found:
                entries += 1
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                if entries > most_files:
                    break
    return size, entries


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
