"""Removes what gateways that died left behind: unfinished uploads, and the folders they were read in."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import structlog

from store.blobs.abandoned import abandoned_paths
from store.blobs.blob_store import Blobs
from store.blobs.references import HELD_S

READING = ".reading-"
log = structlog.get_logger("fewbit.gateway")


def reading_folder(blobs: Blobs) -> Path:
    """A new folder to read an upload in, on the disk of the blobs where they have one."""
    return Path(tempfile.mkdtemp(prefix=READING, dir=blobs.folder))


async def remove_abandoned(blobs: Blobs) -> None:
    """Delete what is so old that no gateway can still be working on it."""
    try:
        await asyncio.to_thread(_tidy, blobs)
    except Exception:  # the store is away; the next start will do
        log.warning("abandoned uploads not removed", exc_info=True)


def _tidy(blobs: Blobs) -> None:
    blobs.tidy(HELD_S)
    for folder in abandoned_paths(blobs.folder or Path(tempfile.gettempdir()), f"{READING}*", HELD_S):
        shutil.rmtree(folder, ignore_errors=True)
