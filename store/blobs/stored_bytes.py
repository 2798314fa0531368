"""How many bytes a tenant keeps, and reservations for more. They are made before the bytes arrive, so that uploads that
arrive at the same time cannot pass the limit together.

A reservation that is not renewed runs out, so a gateway that dies reserves nothing for ever.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from store.scripts.script import Script
from store.tenancy.tenants import Tenant

KEPT_S = 120
STEP = 64 * 1024 * 1024
RENEW_S = 30.0


class QuotaPassed(Exception):
    """The tenant's quota of bytes would be passed. ``used`` is what it keeps already."""

    def __init__(self, used: int, limit: int) -> None:
        super().__init__(used, limit)
        self.used = used
        self.limit = limit


@dataclass
class Reservation:
    """Space for one upload, taken in steps while it arrives."""

    redis: Redis
    tenant: Tenant
    holder: str
    limit: int
    size: int = 0
    renewed: float = 0.0

    async def cover(self, size: int) -> None:
        """Reserve space for ``size`` bytes in all. Raises ``QuotaPassed``."""
        now = time.time()
        if size <= self.size and now - self.renewed < RENEW_S:
            return
        wanted = max(size, self.size)
        has_space, used = await Script(self.redis, "blobs/reserve_bytes")(
            [self.tenant.stored, self.tenant.reserved],
            holder=self.holder,
            bytes=wanted,
            limit=self.limit,
            now_s=int(now),
            until_s=int(now + KEPT_S),
        )
        if not has_space:
            raise QuotaPassed(used, self.limit)
        self.size, self.renewed = wanted, now

    async def grow(self, size: int) -> None:
        """Like ``cover``, a step ahead if the quota allows one, so that not every chunk costs a call."""
        if size <= self.size and time.time() - self.renewed < RENEW_S:
            return
        try:
            await self.cover(size + STEP)
        except QuotaPassed:
            await self.cover(size)

    async def release(self) -> None:
        await self.redis.hdel(self.tenant.reserved, self.holder)


async def stored_bytes(redis: Redis, tenant: Tenant) -> int:
    total = await cast("Awaitable[bytes | None]", redis.hget(tenant.stored, "total"))
    return int(total or 0)
