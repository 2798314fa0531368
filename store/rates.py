"""Requests per minute of a tenant, over all gateways: GCRA, one key and one round trip.

After "Traffic Management", ITU-T I.371 (the generic cell rate algorithm): the key holds when the tenant's allowance
will be full again. It lets ``limit`` through at once and one more every ``60 / limit`` seconds, with no edge of a
window at which twice as many pass. What is left, and the time until it is full, are what the RateLimit header tells.
"""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from store.tenants import Tenant

WINDOW_S = 60

# KEYS 1 when it is full again, in us. ARGV 1 limit, 2 window in us. Returns {1 when let through, left, us until full}
_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local each = ARGV[2] / ARGV[1]
local full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0'))
local after = full + each
if after - now > ARGV[2] + 0.5 then return {0, 0, math.ceil(after - now - ARGV[2])} end
redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000) + 1)
return {1, math.floor((ARGV[2] - (after - now)) / each), math.ceil(after - now)}
"""


@dataclass(frozen=True)
class Allowance:
    """``left`` requests now; all of them again in ``seconds``. Not ``granted``: one more in ``seconds``."""

    granted: bool
    left: int
    seconds: int


class Rates:
    """``limit`` requests a minute for each tenant."""

    def __init__(self, redis: Redis, limit: int) -> None:
        self.limit = limit
        self._take = redis.register_script(_TAKE)

    async def take(self, tenant: str) -> Allowance:
        args = [self.limit, WINDOW_S * 1_000_000]
        granted, left, micros = await self._take(keys=[Tenant(tenant).rate], args=args)
        return Allowance(bool(granted), left, -(-micros // 1_000_000))
