"""Requests per minute of a tenant, over all gateways: GCRA, one key, and one round trip or less.

After "Traffic Management", ITU-T I.371 (the generic cell rate algorithm): the key holds when the tenant's allowance
will be full again. It lets ``limit`` through at once and one more every ``60 / limit`` seconds, with no edge of a
window at which twice as many pass. What is left, and the time until it is full, are what the RateLimit header tells.

A busy tenant is granted some requests ahead, so that most of them need no call to Redis. Those not used within a second
are lost: at most a tenth of what comes back in that second, and none for a tenant that asks now and then.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from redis.asyncio import Redis

from store.scripts.script import Script
from store.tenancy.tenants import Tenant

WINDOW_S = 60
AHEAD_S, MOST_AHEAD = 1.0, 100


@dataclass(frozen=True)
class Allowance:
    """``left`` requests may follow now, all of them again in ``seconds``. Not ``granted``: the next in ``seconds``."""

    granted: bool
    left: int
    seconds: int


NOTHING = Allowance(False, 0, 0)


@dataclass
class _Ahead:
    """``count`` more requests of a tenant are let through until ``until``, out of ``size``: Redis ``told`` so."""

    size: int = 1
    count: int = 0
    until: float = 0.0
    told: Allowance = NOTHING
    asking: bool = False

    def next_one(self) -> Allowance:
        self.count -= 1
        return Allowance(True, self.told.left + self.count, self.told.seconds)


class Rates:
    """``limit`` requests a minute for each tenant."""

    def __init__(self, redis: Redis, limit: int) -> None:
        self.limit = limit
        self._most_ahead = max(1, min(MOST_AHEAD, limit // (10 * WINDOW_S)))
        self._take = Script(redis, "tenancy/take_requests")
        self._ahead: dict[str, _Ahead] = {}

    async def take(self, tenant: str) -> Allowance:
        ahead = self._ahead.setdefault(tenant, _Ahead())
        in_time = time.monotonic() < ahead.until
        if ahead.count and in_time:
            return ahead.next_one()
        if ahead.asking:
            return (await self._ask(tenant, 1))[1]
        ahead.asking = True
        try:
            size, told = await self._ask(tenant, min(2 * ahead.size, self._most_ahead) if in_time else 1)
        finally:
            ahead.asking = False
        if not told.granted:
            return told
        ahead.size, ahead.count, ahead.until, ahead.told = size, size, time.monotonic() + AHEAD_S, told
        return ahead.next_one()

    async def _ask(self, tenant: str, most: int) -> tuple[int, Allowance]:
        """How many are let through, and what is left behind them."""
        count, left, micros = await self._take(
            [Tenant(tenant).rate], limit=self.limit, window_us=WINDOW_S * 1_000_000, most=most
        )
        return count, Allowance(bool(count), left, -(-micros // 1_000_000))
