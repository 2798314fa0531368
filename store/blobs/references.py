"""Which records need a blob: a set of ids. The bytes go when the last of them does.

Two jobs of a tenant that made the same artifact share one blob. The scripts that create a record also take its
references, so a record never names bytes that nobody holds; references are dropped here. Until there is a record, the
process that stores the bytes holds them, from just before they are in place, and for ``HELD_S`` at most: if it dies,
they are not kept forever. Bytes count for the tenant from the first reference to the last.

Bytes are deleted outside of Redis. Until that is done nobody can hold their digest: a process that stores equal bytes
waits, and then stores them again. If a process dies while it deletes, the next sweep repeats the deletion.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import redis
from redis.asyncio import Redis

from store.blobs.blob_store import BlobInfo, Blobs
from store.outage import persist
from store.records import DELETING, HOLDS
from store.scripts.script import Script
from store.tenancy.tenants import Tenant

HELD_S = 6 * 3600  # the largest dataset is judged, the largest artifact sent away in minutes
DELETING_S = 240  # obstore gives a request up after 180 s
_LOOK_EVERY_S = 0.02

_HOLD, _DROP, _END_DELETION = "blobs/hold", "blobs/drop", "blobs/end_deletion"


@dataclass(frozen=True)
class _Reference:
    """That ``owner`` needs a blob, as the scripts take it."""

    tenant: Tenant
    owner: str
    sha256: str

    @property
    def name(self) -> str:
        return f"{self.tenant.name}:{self.sha256}:{self.owner}"

    @classmethod
    def named(cls, name: str) -> _Reference:
        tenant, sha256, owner = name.split(":", 2)
        return cls(Tenant(tenant), owner, sha256)

    @property
    def blob(self) -> str:
        return f"{self.tenant.name}:{self.sha256}"

    @property
    def keys(self) -> list[str]:
        return [self.tenant.references(self.sha256), self.tenant.stored, HOLDS, DELETING]

    @property
    def names(self) -> dict[str, str]:
        return {"holder": self.owner, "sha256": self.sha256, "hold": self.name, "blob": self.blob}

    def hold(self, script: Script, size: int) -> Any:
        """False while the bytes are being deleted."""
        return script([*self.keys, self.tenant.reserved], **self.names, size=size, for_ms=HELD_S * 1000)

    def drop(self, script: Script) -> Any:
        """The deadline of a deletion that is the caller's to do, else 0."""
        return script(self.keys, **self.names, deletion_ms=DELETING_S * 1000)

    def end_deletion(self, script: Script, deadline: int) -> Any:
        return script([DELETING], blob=self.blob, deadline=deadline)


@asynccontextmanager
async def holding(
    redis: Redis, blobs: Blobs, tenant: Tenant, owner: str
) -> AsyncIterator[Callable[[BlobInfo], Awaitable[None]]]:
    """``async with holding(redis, blobs, tenant, owner) as hold``: what is held, ``owner`` needs until the end of the
    block. Then its bytes go, unless a record needs them by now."""
    script, held = Script(redis, _HOLD), []

    async def hold(blob: BlobInfo) -> None:
        held.append(blob.sha256)  # first: whoever is canceled in the middle of the call drops it too
        reference = _Reference(tenant, owner, blob.sha256)
        while not await reference.hold(script, blob.size):  # noqa: ASYNC110  # another process ends it
            await asyncio.sleep(_LOOK_EVERY_S)

    try:
        yield hold
    finally:
        await drop_references(redis, blobs, tenant, owner, held)


async def drop_references(redis: Redis, blobs: Blobs, tenant: Tenant, owner: str, sha256s: Iterable[str]) -> None:
    """``owner`` is gone; so are the bytes that nobody else of the tenant needs."""
    drop, end_deletion = Script(redis, _DROP), Script(redis, _END_DELETION)
    for sha256 in sha256s:
        reference = _Reference(tenant, owner, sha256)
        if deadline := await reference.drop(drop):
            await blobs.delete(sha256)
            await reference.end_deletion(end_deletion, deadline)


class References:
    """The workers' side; threads may share it. Calls wait ``patience_s`` for a Redis that restarts."""

    def __init__(self, client: redis.Redis, blobs: Blobs, patience_s: float) -> None:
        self._redis = client
        self._blobs = blobs
        self._patience_s = patience_s
        self._hold = Script(client, _HOLD)
        self._drop = Script(client, _DROP)
        self._end_deletion = Script(client, _END_DELETION)

    @contextmanager
    def holding(self, tenant: Tenant, owner: str) -> Iterator[Callable[[BlobInfo], None]]:
        """``with references.holding(tenant, owner) as hold``: what is held, ``owner`` needs until the end of the block.
        Then its bytes go, unless a record needs them by now."""
        held: list[_Reference] = []

        def hold(blob: BlobInfo) -> None:
            reference = _Reference(tenant, owner, blob.sha256)
            held.append(reference)
            while not persist(lambda: reference.hold(self._hold, blob.size), self._patience_s):
                time.sleep(_LOOK_EVERY_S)

        try:
            yield hold
        finally:
            with suppress(redis.RedisError):  # what stays is found by ``sweep``
                for reference in held:
                    self._drop_reference(reference)

    def sweep(self, now: float | None = None) -> list[str]:
        """Drop what was held for too long: its holder died; and delete what was not deleted in time. ``now``: seconds
        since the epoch, by Redis's clock unless told. Returns the holders."""
        seconds, _ = self._redis.time()
        now_ms = int((seconds if now is None else now) * 1000)
        overdue = [_Reference.named(name) for name in self._until(HOLDS, now_ms)]
        undeleted = [_Reference.named(f"{blob}:") for blob in self._until(DELETING, now_ms)]
        for reference in (*overdue, *undeleted):
            self._drop_reference(reference)
        return [reference.owner for reference in overdue]

    def _until(self, deadlines: str, now_ms: int) -> list[str]:
        return [name.decode() for name in cast("list[bytes]", self._redis.zrangebyscore(deadlines, "-inf", now_ms))]

    def _drop_reference(self, reference: _Reference) -> None:
        deadline: int = persist(lambda: reference.drop(self._drop), self._patience_s)
        if deadline:
            self._blobs.within(reference.tenant.name).remove(reference.sha256)
            reference.end_deletion(self._end_deletion, deadline)
