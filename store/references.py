"""Which records need a blob: a set of ids. The bytes go when the last of them does.

Two jobs of a tenant that made the same artifact share one blob. References are taken in the scripts that make a record,
so a record never names bytes that nobody holds; they are dropped here. Until there is a record, whoever brings the
bytes holds them, from before they are in place: for ``HELD_S`` at most, so that one who dies over it keeps nothing for
ever. Bytes are counted with the first reference and given back with the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import redis
from redis.asyncio import Redis

from store.blobs import BlobInfo, Blobs
from store.patience import persist
from store.records import HOLDS
from store.tenants import Tenant

HELD_S = 6 * 3600  # the largest dataset is judged, the largest artifact sent away in minutes

# KEYS 1 references of the blob, 2 the tenant's stored bytes, 3 its reservations, 4 holds with their deadlines
# ARGV 1 holder, 2 digest, 3 size, 4 the hold by name, 5 for how long, in ms
_HOLD = """
local clock = redis.call('TIME')
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[4], string.format('%.0f', clock[1] * 1000 + ARGV[5]), ARGV[4])
redis.call('HDEL', KEYS[3], ARGV[1])
if redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3]) == 1 then redis.call('HINCRBY', KEYS[2], 'total', ARGV[3]) end
"""

# KEYS 1 references of the blob, 2 the tenant's stored bytes, 3 holds. ARGV 1 holder, 2 digest, 3 the hold by name.
# Returns 1 when nobody needs it
_DROP = """
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[3])
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local size = redis.call('HGET', KEYS[2], ARGV[2])
if size then
  redis.call('HDEL', KEYS[2], ARGV[2])
  redis.call('HINCRBY', KEYS[2], 'total', -size)
end
return 1
"""


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

    def holding(self, size: int) -> tuple[list[str], list[str | int]]:
        keys = [self.tenant.references(self.sha256), self.tenant.stored, self.tenant.reserved, HOLDS]
        return keys, [self.owner, self.sha256, size, self.name, HELD_S * 1000]

    def dropping(self) -> tuple[list[str], list[str | int]]:
        keys = [self.tenant.references(self.sha256), self.tenant.stored, HOLDS]
        return keys, [self.owner, self.sha256, self.name]


async def hold(redis: Redis, tenant: Tenant, owner: str, blob: BlobInfo) -> None:
    """``owner`` needs these bytes from now on, until it drops them, and for ``HELD_S`` at most."""
    keys, args = _Reference(tenant, owner, blob.sha256).holding(blob.size)
    await redis.register_script(_HOLD)(keys=keys, args=args)


async def drop_references(redis: Redis, blobs: Blobs, tenant: Tenant, owner: str, sha256s: Iterable[str]) -> None:
    """``owner`` is gone; so are the bytes that nobody else of the tenant needs."""
    script = redis.register_script(_DROP)
    for sha256 in sha256s:
        keys, args = _Reference(tenant, owner, sha256).dropping()
        if await script(keys=keys, args=args):
            await blobs.delete(sha256)


class References:
    """The workers' side; threads may share it. Calls wait ``patience_s`` for a Redis that restarts."""

    def __init__(self, client: redis.Redis, blobs: Blobs, patience_s: float) -> None:
        self._redis = client
        self._blobs = blobs
        self._patience_s = patience_s
        self._hold = client.register_script(_HOLD)
        self._drop = client.register_script(_DROP)

    @contextmanager
    def holding(self, tenant: Tenant, owner: str) -> Iterator[Callable[[BlobInfo], None]]:
        """``with references.holding(tenant, owner) as hold``: what is held, ``owner`` needs until the end of the block.
        Then its bytes go, unless a record needs them by now."""
        held: list[_Reference] = []

        def hold(blob: BlobInfo) -> None:
            held.append(_Reference(tenant, owner, blob.sha256))
            keys, args = held[-1].holding(blob.size)
            persist(lambda: self._hold(keys=keys, args=args), self._patience_s)

        try:
            yield hold
        finally:
            with suppress(redis.RedisError):  # what stays is found by ``sweep``
                for each in held:
                    self._let_go(each)

    def sweep(self, now: float | None = None) -> list[str]:
        """Drop what was held for too long: its holder died. ``now``: seconds since the epoch, by Redis's clock unless
        told. Returns the holders."""
        seconds, _ = self._redis.time()
        now_ms = int((seconds if now is None else now) * 1000)
        names = cast("list[bytes]", self._redis.zrangebyscore(HOLDS, "-inf", now_ms))
        overdue = [_Reference.named(name.decode()) for name in names]
        for each in overdue:
            self._let_go(each)
        return [each.owner for each in overdue]

    def _let_go(self, reference: _Reference) -> None:
        keys, args = reference.dropping()
        if persist(lambda: self._drop(keys=keys, args=args), self._patience_s):
            self._blobs.within(reference.tenant.name).remove(reference.sha256)
