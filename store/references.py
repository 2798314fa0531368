"""Which records need a blob: a set of ids. The bytes go when the last of them does.

Two jobs that made the same artifact share one blob. References are taken in the scripts that make a record, so a record
never names bytes that nobody holds; they are dropped here.
"""

from __future__ import annotations

from collections.abc import Iterable

from redis.asyncio import Redis

from store.blobs import Blobs
from store.records import references_key


async def drop_references(redis: Redis, blobs: Blobs, owner: str, sha256s: Iterable[str]) -> None:
    """``owner`` is gone; so are the bytes that nobody else needs."""
    for sha256 in sha256s:
        async with redis.pipeline(transaction=True) as pipe:
            pipe.srem(references_key(sha256), owner)
            pipe.exists(references_key(sha256))
            _, needed = await pipe.execute()
        if not needed:
            await blobs.delete(sha256)
