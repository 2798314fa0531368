"""The private folder of one job: created for it, readable by nobody else, wiped when it ends.

Its files were written by a process that ran a stranger's model, so only plain files are read: ``report.json`` could be
a link to ``/etc/shadow``.
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

from store.blobs.abandoned import abandoned_paths

_ABANDONED_S = 26 * 3600  # a job may take a day
MAX_REPORT_BYTES = 256 << 20


class NotAFile(Exception):
    """A file in the folder is not the plain file it should be."""


@contextlib.contextmanager
def scratch_folder(parent: Path, job_id: str) -> Iterator[Path]:
    """A new folder, mode 0700, wiped at the end whatever the job did to it."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"fewbit-{job_id}-", dir=parent))
    try:
        yield folder
    finally:
        _wipe(folder)


def wipe_abandoned_folders(parent: Path) -> None:
    """Wipe the folders on this machine whose worker was killed more than a day ago."""
    for kind in ("job", "mdl"):
        for folder in abandoned_paths(parent, f"fewbit-{kind}_*", _ABANDONED_S):
            if not folder.is_symlink():
                _wipe(folder)


def plain_file(folder: Path, name: str) -> Path:
    """``folder/name``, which must be a regular file directly in a real folder. Raises ``NotAFile``."""
    path = folder / name
    if not name or name != Path(name).name or name in (".", ".."):
        raise NotAFile(f"{name!r} is no file name")
    try:
        is_plain = stat.S_ISREG(path.lstat().st_mode) and stat.S_ISDIR(folder.lstat().st_mode)
    except OSError as error:
        raise NotAFile(f"{name!r} is missing") from error
    if not is_plain:
        raise NotAFile(f"{name!r} is not a regular file")
    return path


def read_report(folder: Path) -> bytes:
    """The bytes of ``report.json``. Raises ``NotAFile``."""
    path = plain_file(folder, "report.json")
    if path.stat().st_size > MAX_REPORT_BYTES:
        raise NotAFile(f"the report has {path.stat().st_size} bytes; at most {MAX_REPORT_BYTES} are read")
    return path.read_bytes()


def _wipe(folder: Path) -> None:
    shutil.rmtree(folder, onerror=partial(_unlock_and_retry, folder))


def _unlock_and_retry(top: Path, function: Callable[..., Any], path: str, _: Any) -> None:
    """Give the folder permissions and delete again: without them it cannot even be listed.

    The parent of ``top`` is left alone. It is the temporary folder of the whole machine, and another worker may have
    wiped ``top`` already.
    """
    with contextlib.suppress(OSError):
        for locked in (Path(path).parent, Path(path)):
            if locked != top.parent and not locked.is_symlink():
                locked.chmod(0o700)
        if function in (os.open, os.scandir, os.lstat, os.rmdir):
            shutil.rmtree(path, ignore_errors=True)
        else:
            function(path)
