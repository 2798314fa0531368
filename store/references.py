"""Which records need a blob: a set of ids. The bytes go when the last of them does.

Two jobs of a tenant that made the same artifact share one blob. References are taken in the scripts that make a record,
so a record never names bytes that nobody holds; they are dropped here. Bytes are counted with the first reference and
given back with the last.
"""

from __future__ import annotations

from collections.abc import Iterable

from redis.asyncio import Redis

from store.blobs import BlobInfo, Blobs
from store.tenants import Tenant

# KEYS 1 references of the blob, 2 the tenant's stored bytes, 3 its reservations. ARGV 1 holder, 2 digest, 3 size
_HOLD = """
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
if redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3]) == 1 then redis.call('HINCRBY', KEYS[2], 'total', ARGV[3]) end
"""

# KEYS 1 references of the blob, 2 the tenant's stored bytes. ARGV 1 holder, 2 digest. Returns 1 when nobody needs it
_DROP = """
redis.call('SREM', KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local size = redis.call('HGET', KEYS[2], ARGV[2])
if size then
  redis.call('HDEL', KEYS[2], ARGV[2])
  redis.call('HINCRBY', KEYS[2], 'total', -size)
end
return 1
"""


async def hold(redis: Redis, tenant: Tenant, owner: str, blob: BlobInfo) -> None:
    """``owner`` needs these bytes from now on."""
    keys = [tenant.references(blob.sha256), tenant.stored, tenant.reserved]
    await redis.register_script(_HOLD)(keys=keys, args=[owner, blob.sha256, blob.size])


async def drop_references(redis: Redis, blobs: Blobs, tenant: Tenant, owner: str, sha256s: Iterable[str]) -> None:
    """``owner`` is gone; so are the bytes that nobody else of the tenant needs."""
    script = redis.register_script(_DROP)
    for sha256 in sha256s:
        keys = [tenant.references(sha256), tenant.stored]
        if await script(keys=keys, args=[owner, sha256]):
            await blobs.delete(sha256)
