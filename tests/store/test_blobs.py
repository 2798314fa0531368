"""Blobs: whole or not at all."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.blobs.blob_store import BlobMismatch, Blobs, BlobTooLarge

CONTENT = bytes(range(256)) * 50_000


async def chunks(content: bytes = CONTENT, fail: bool = False) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 64_000):
        yield content[start : start + 64_000]
    if fail:
        raise ConnectionResetError


def files(blobs: Blobs) -> list[str]:
    assert blobs.folder is not None
    return [path.name for path in blobs.folder.rglob("*") if path.is_file()]


def test_a_stream_is_kept_under_its_digest(blobs: Blobs) -> None:
    info = asyncio.run(blobs.put_stream(chunks(), max_bytes=len(CONTENT)))
    assert (info.sha256, info.size) == (hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    assert files(blobs) == [info.sha256]


def test_a_stream_that_breaks_off_leaves_nothing(blobs: Blobs) -> None:
    with pytest.raises(ConnectionResetError):
        asyncio.run(blobs.put_stream(chunks(fail=True), max_bytes=2 * len(CONTENT)))
    assert files(blobs) == []


def test_a_stream_that_is_too_long_or_not_the_announced_one_leaves_nothing(blobs: Blobs) -> None:
    with pytest.raises(BlobTooLarge):
        asyncio.run(blobs.put_stream(chunks(), max_bytes=len(CONTENT) - 1))
    with pytest.raises(BlobMismatch):
        asyncio.run(blobs.put_stream(chunks(), max_bytes=len(CONTENT), expected_sha256="0" * 64))
    assert files(blobs) == []


def test_a_range_is_the_same_bytes(blobs: Blobs) -> None:
    async def read(start: int, end: int | None) -> bytes:
        info = await blobs.put_stream(chunks(), max_bytes=len(CONTENT))
        return b"".join([chunk async for chunk in blobs.stream(info.sha256, start, end)])

    assert asyncio.run(read(0, None)) == CONTENT
    assert asyncio.run(read(1_000_001, 3_000_000)) == CONTENT[1_000_001:3_000_000]


def test_a_worker_gets_a_copy_it_may_spoil(blobs: Blobs, tmp_path: Path) -> None:
    info = asyncio.run(blobs.put_stream(chunks(), max_bytes=len(CONTENT)))
    blobs.fetch(info.sha256, tmp_path / "copy")
    (tmp_path / "copy").write_bytes(b"spoilt")
    blobs.fetch(info.sha256, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == CONTENT
    assert blobs.put_file(tmp_path / "again") == info
