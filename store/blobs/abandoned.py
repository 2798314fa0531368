"""Finds what a process that died left behind. Only its age tells: there is nobody to ask."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def abandoned_paths(folder: Path, pattern: str, age_s: float) -> Iterator[Path]:
    """Files and folders directly in ``folder`` that nothing was written to for ``age_s`` seconds."""
    before = time.time() - age_s
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # another process tidies up as well
            if path.lstat().st_mtime < before:
                yield path
