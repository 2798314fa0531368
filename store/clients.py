"""The two Redis clients: sync for workers, async for the gateway. Both speak bytes; ``records`` decodes."""

from __future__ import annotations

import redis
import redis.asyncio

from store.settings import StoreSettings


def connect(settings: StoreSettings) -> redis.Redis:
    """The workers' client. It reads with a limit, so that a silent Redis is noticed before a lease runs out."""
    return redis.Redis.from_url(settings.redis_url, socket_timeout=10, socket_connect_timeout=5)


def connect_async(settings: StoreSettings, max_connections: int = 128) -> redis.asyncio.Redis:
    """The gateway's client. Requests wait for a free connection instead of failing when there are many."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        settings.redis_url, max_connections=max_connections, timeout=20, socket_timeout=70, socket_connect_timeout=5
    )
    return redis.asyncio.Redis.from_pool(pool)
