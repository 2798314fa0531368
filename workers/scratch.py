"""The private folder of one job: made for it, readable by nobody else, gone when it ends.

What comes out of it was written by a process that ran a stranger's model. So files are taken only if they are files: a
link to ``/etc/shadow`` named ``report.json`` is not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from store.blobs.abandoned import stale

_STALE_S = 26 * 3600  # a job may take a day
MAX_REPORT_BYTES = 256 << 20


class NotAFile(Exception):
    """Something in the folder is not the plain file it should be."""


@contextlib.contextmanager
def scratch_folder(parent: Path, job_id: str) -> Iterator[Path]:
    """A new folder, mode 0700, wiped on the way out whatever its owner made of it."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"fewbit-{job_id}-", dir=parent))
    try:
        yield folder
    finally:
        _wipe(folder)


def tidy(parent: Path) -> None:
    """Wipe the folders of jobs and models whose worker was killed, on this machine, more than a day ago."""
    for kind in ("job", "mdl"):
        for folder in stale(parent, f"fewbit-{kind}_*", _STALE_S):
            if not folder.is_symlink():
                _wipe(folder)


def plain_file(folder: Path, name: str) -> Path:
    """``folder/name``, which must be a regular file directly in a real folder. Raises ``NotAFile``."""
    path = folder / name
    if not name or name != Path(name).name or name in (".", ".."):
        raise NotAFile(f"{name!r} is no file name")
    try:
        sound = stat.S_ISREG(path.lstat().st_mode) and stat.S_ISDIR(folder.lstat().st_mode)
    except OSError as error:
        raise NotAFile(f"{name!r} is missing") from error
    if not sound:
        raise NotAFile(f"{name!r} is not a regular file")
    return path


def read_report(folder: Path) -> bytes:
    """The bytes of ``report.json``. Raises ``NotAFile``."""
    path = plain_file(folder, "report.json")
    if path.stat().st_size > MAX_REPORT_BYTES:
        raise NotAFile(f"the report has {path.stat().st_size} bytes; at most {MAX_REPORT_BYTES} are taken")
    return path.read_bytes()


def _wipe(folder: Path) -> None:
    shutil.rmtree(folder, onerror=partial(_unlock_and_retry, folder))


def _unlock_and_retry(top: Path, function: Callable[..., Any], path: str, _: Any) -> None:
    """A folder without permissions cannot be listed, not even to be deleted. What ``top`` lies in is not ours to
    unlock: it is the temporary folder of the whole machine, and another worker may have wiped ``top`` before us."""
    with contextlib.suppress(OSError):
        for locked in (Path(path).parent, Path(path)):
            if locked != top.parent and not locked.is_symlink():
                locked.chmod(0o700)
        if function in (os.open, os.scandir, os.lstat, os.rmdir):
            shutil.rmtree(path, ignore_errors=True)
        else:
            function(path)
