"""How many bytes a tenant keeps, and room for more: reserved before they arrive, so that uploads that arrive together
cannot pass the limit together.

A reservation that is not renewed runs out: a gateway that dies takes no room with it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from store.tenancy.tenants import Tenant

KEPT_S = 120
STEP = 64 * 1024 * 1024
RENEW_S = 30.0

# KEYS 1 stored bytes, 2 reservations. ARGV 1 holder, 2 bytes, 3 limit, 4 now, 5 until. Returns {1 when there is room,
# bytes stored and reserved by others}
_RESERVE = """
local used = tonumber(redis.call('HGET', KEYS[1], 'total') or '0')
local held = redis.call('HGETALL', KEYS[2])
for i = 1, #held, 2 do
  local bytes, ends = string.match(held[i + 1], '(%d+) (%d+)')
  if tonumber(ends) < tonumber(ARGV[4]) then redis.call('HDEL', KEYS[2], held[i])
  elseif held[i] ~= ARGV[1] then used = used + tonumber(bytes) end
end
if used + tonumber(ARGV[2]) > tonumber(ARGV[3]) then return {0, used} end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ' ' .. ARGV[5])
return {1, used}
"""


class NoRoom(Exception):
    """The tenant's quota of bytes would be passed. ``used`` is what it keeps already."""

    def __init__(self, used: int, limit: int) -> None:
        super().__init__(used, limit)
        self.used = used
        self.limit = limit


@dataclass
class Reservation:
    """Room for one upload, taken in steps while it arrives."""

    redis: Redis
    tenant: Tenant
    holder: str
    limit: int
    size: int = 0
    renewed: float = 0.0

    async def cover(self, size: int) -> None:
        """Make sure of room for ``size`` bytes in all. Raises ``NoRoom``."""
        now = time.time()
        if size <= self.size and now - self.renewed < RENEW_S:
            return
        wanted = max(size, self.size)
        keys = [self.tenant.stored, self.tenant.reserved]
        args: list[str | int] = [self.holder, wanted, self.limit, int(now), int(now + KEPT_S)]
        room, used = await self.redis.register_script(_RESERVE)(keys=keys, args=args)
        if not room:
            raise NoRoom(used, self.limit)
        self.size, self.renewed = wanted, now

    async def grow(self, size: int) -> None:
        """Like ``cover``, a step ahead where there is room for one: not a call for each chunk."""
        if size <= self.size and time.time() - self.renewed < RENEW_S:
            return
        try:
            await self.cover(size + STEP)
        except NoRoom:
            await self.cover(size)

    async def release(self) -> None:
        await self.redis.hdel(self.tenant.reserved, self.holder)


async def stored_bytes(redis: Redis, tenant: Tenant) -> int:
    total = await cast("Awaitable[bytes | None]", redis.hget(tenant.stored, "total"))
    return int(total or 0)
