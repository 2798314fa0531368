"""Which records need a blob: a set of ids. The bytes go when the last of them does.

Two jobs of a tenant that made the same artifact share one blob. References are taken in the scripts that make a record,
so a record never names bytes that nobody holds; they are dropped here. Until there is a record, whoever brings the
bytes holds them, from before they are in place: for ``HELD_S`` at most, so that one who dies over it keeps nothing for
ever. Bytes are counted with the first reference and given back with the last.

Bytes are deleted outside of Redis. Until that is done nobody takes hold of their digest: whoever brings the same bytes
waits, and then stores them anew. A deletion whose process died is done once more by the next sweep.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import redis
from redis.asyncio import Redis

from store.blobs.blob_store import BlobInfo, Blobs
from store.records import DELETING, HOLDS
from store.retries import persist
from store.tenancy.tenants import Tenant

HELD_S = 6 * 3600  # the largest dataset is judged, the largest artifact sent away in minutes
DELETING_S = 240  # obstore gives a request up after 180 s
_LOOK_EVERY_S = 0.02

_CLOCK = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function deleting(key, blob) return tonumber(redis.call('ZSCORE', key, blob) or '0') > now end
local function deadline(ms) return string.format('%.0f', now + ms) end
"""

# KEYS 1 references of the blob, 2 the tenant's stored bytes, 3 holds, 4 deletions, 5 the tenant's reservations
# ARGV 1 holder, 2 digest, 3 the hold by name, 4 the blob by name, 5 size, 6 for how long, in ms
# Returns 0 while its bytes are being deleted
_HOLD = (
    _CLOCK
    + """
if deleting(KEYS[4], ARGV[4]) then return 0 end
redis.call('ZREM', KEYS[4], ARGV[4])
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[3], deadline(ARGV[6]), ARGV[3])
redis.call('HDEL', KEYS[5], ARGV[1])
if redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[5]) == 1 then redis.call('HINCRBY', KEYS[2], 'total', ARGV[5]) end
return 1
"""
)

# KEYS 1 references of the blob, 2 the tenant's stored bytes, 3 holds, 4 deletions
# ARGV 1 holder, 2 digest, 3 the hold by name, 4 the blob by name, 5 how long its deletion may take, in ms
# Returns the deadline of that for who has to do it now; 0 when someone needs the blob, or deletes it already
_DROP = (
    _CLOCK
    + """
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[3])
if deleting(KEYS[4], ARGV[4]) then return 0 end
redis.call('ZREM', KEYS[4], ARGV[4])
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local size = redis.call('HGET', KEYS[2], ARGV[2])
if size then
  redis.call('HDEL', KEYS[2], ARGV[2])
  redis.call('HINCRBY', KEYS[2], 'total', -size)
end
redis.call('ZADD', KEYS[4], deadline(ARGV[5]), ARGV[4])
return tonumber(deadline(ARGV[5]))
"""
)

# KEYS 1 deletions. ARGV 1 the blob by name, 2 the deadline of the deletion that is done
_DELETED = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('ZREM', KEYS[1], ARGV[1]) end
"""


_Call = tuple[list[str], list[str | int]]
"""Keys and arguments of a script."""


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

    def holding(self, size: int) -> _Call:
        return [*self._keys, self.tenant.reserved], [*self._words, size, HELD_S * 1000]

    def dropping(self) -> _Call:
        return self._keys, [*self._words, DELETING_S * 1000]

    def deleted(self, deadline: int) -> _Call:
        return [DELETING], [self.blob, deadline]

    @property
    def _keys(self) -> list[str]:
        return [self.tenant.references(self.sha256), self.tenant.stored, HOLDS, DELETING]

    @property
    def _words(self) -> list[str]:
        return [self.owner, self.sha256, self.name, self.blob]


@asynccontextmanager
async def holding(
    redis: Redis, blobs: Blobs, tenant: Tenant, owner: str
) -> AsyncIterator[Callable[[BlobInfo], Awaitable[None]]]:
    """``async with holding(redis, blobs, tenant, owner) as hold``: what is held, ``owner`` needs until the end of the
    block. Then its bytes go, unless a record needs them by now."""
    script, held = redis.register_script(_HOLD), []

    async def hold(blob: BlobInfo) -> None:
        held.append(blob.sha256)  # before it is: whoever leaves in the middle of the call drops it, too
        keys, args = _Reference(tenant, owner, blob.sha256).holding(blob.size)
        while not await script(keys=keys, args=args):  # noqa: ASYNC110  # another process ends it
            await asyncio.sleep(_LOOK_EVERY_S)

    try:
        yield hold
    finally:
        await drop_references(redis, blobs, tenant, owner, held)


async def drop_references(redis: Redis, blobs: Blobs, tenant: Tenant, owner: str, sha256s: Iterable[str]) -> None:
    """``owner`` is gone; so are the bytes that nobody else of the tenant needs."""
    drop, done = redis.register_script(_DROP), redis.register_script(_DELETED)
    for sha256 in sha256s:
        reference = _Reference(tenant, owner, sha256)
        keys, args = reference.dropping()
        if deadline := await drop(keys=keys, args=args):
            await blobs.delete(sha256)
            keys, args = reference.deleted(deadline)
            await done(keys=keys, args=args)


class References:
    """The workers' side; threads may share it. Calls wait ``patience_s`` for a Redis that restarts."""

    def __init__(self, client: redis.Redis, blobs: Blobs, patience_s: float) -> None:
        self._redis = client
        self._blobs = blobs
        self._patience_s = patience_s
        self._hold = client.register_script(_HOLD)
        self._drop = client.register_script(_DROP)
        self._done = client.register_script(_DELETED)

    @contextmanager
    def holding(self, tenant: Tenant, owner: str) -> Iterator[Callable[[BlobInfo], None]]:
        """``with references.holding(tenant, owner) as hold``: what is held, ``owner`` needs until the end of the block.
        Then its bytes go, unless a record needs them by now."""
        held: list[_Reference] = []

        def hold(blob: BlobInfo) -> None:
            held.append(_Reference(tenant, owner, blob.sha256))
            keys, args = held[-1].holding(blob.size)
            while not persist(lambda: self._hold(keys=keys, args=args), self._patience_s):
                time.sleep(_LOOK_EVERY_S)

        try:
            yield hold
        finally:
            with suppress(redis.RedisError):  # what stays is found by ``sweep``
                for each in held:
                    self._let_go(each)

    def sweep(self, now: float | None = None) -> list[str]:
        """Drop what was held for too long: its holder died; and delete what was not deleted in time. ``now``: seconds
        since the epoch, by Redis's clock unless told. Returns the holders."""
        seconds, _ = self._redis.time()
        now_ms = int((seconds if now is None else now) * 1000)
        overdue = [_Reference.named(name) for name in self._until(HOLDS, now_ms)]
        undeleted = [_Reference.named(f"{blob}:") for blob in self._until(DELETING, now_ms)]
        for each in (*overdue, *undeleted):
            self._let_go(each)
        return [each.owner for each in overdue]

    def _until(self, deadlines: str, now_ms: int) -> list[str]:
        return [each.decode() for each in cast("list[bytes]", self._redis.zrangebyscore(deadlines, "-inf", now_ms))]

    def _let_go(self, reference: _Reference) -> None:
        keys, args = reference.dropping()
        deadline = cast(int, persist(lambda: self._drop(keys=keys, args=args), self._patience_s))
        if deadline:
            self._blobs.within(reference.tenant.name).remove(reference.sha256)
            keys, args = reference.deleted(deadline)
            self._done(keys=keys, args=args)
