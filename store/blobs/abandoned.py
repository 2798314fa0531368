"""What a process that died has left lying about: told by its age, since nobody can be asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def stale(folder: Path, pattern: str, age_s: float) -> Iterator[Path]:
    """Files and folders directly in ``folder`` that nothing was written to for ``age_s`` seconds."""
    before = time.time() - age_s
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # another process tidies up as well
            if path.lstat().st_mtime < before:
                yield path
