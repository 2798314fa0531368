"""What gateways that died have left behind: uploads that never came to their end, and folders to read them in."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import structlog

from store.blobs.abandoned import stale
from store.blobs.blob_store import Blobs
from store.blobs.references import HELD_S

READING = ".reading-"
log = structlog.get_logger("fewbit.gateway")


def reading_folder(blobs: Blobs) -> Path:
    """A new folder to read an upload in, on the disk of the blobs where they have one."""
    return Path(tempfile.mkdtemp(prefix=READING, dir=blobs.folder))


async def tidied(blobs: Blobs) -> None:
    """Wipe what was left so long ago that whoever made it cannot be at it any more."""
    try:
        await asyncio.to_thread(_tidy, blobs)
    except Exception:  # the store is away; the next start will do
        log.warning("what was left behind stays for now", exc_info=True)


def _tidy(blobs: Blobs) -> None:
    blobs.tidy(HELD_S)
    for folder in stale(blobs.folder or Path(tempfile.gettempdir()), f"{READING}*", HELD_S):
        shutil.rmtree(folder, ignore_errors=True)
