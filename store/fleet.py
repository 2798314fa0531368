"""The workers that are alive: they announce themselves every few seconds, and are forgotten when they stop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import redis
from redis.asyncio import Redis

from store.records import FLEET, worker_key


class Announcer:
    """The workers' side. ``announce`` is to be repeated well within ``ttl_s``."""

    def __init__(self, redis: redis.Redis, ttl_s: float = 15.0) -> None:
        self._redis = redis
        self._ttl_ms = int(ttl_s * 1000)

    def announce(self, name: str, about: Mapping[str, Any]) -> None:
        """``about``: queues, cpu, isa, threads, versions, capabilities; anything JSON can say."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(worker_key(name), json.dumps({"name": name, **about}), px=self._ttl_ms)
            pipe.sadd(FLEET, name)
            pipe.execute()

    def leave(self, name: str) -> None:
        self._redis.delete(worker_key(name))
        self._redis.srem(FLEET, name)


class Fleet:
    """The gateway's side."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def workers(self) -> list[dict[str, Any]]:
        """What each worker alive has announced, by name."""
        names = sorted(name.decode() for name in await cast(Any, self._redis.smembers(FLEET)))
        if not names:
            return []
        bodies = await self._redis.mget([worker_key(name) for name in names])
        gone = [name for name, body in zip(names, bodies, strict=True) if body is None]
        if gone:
            await cast(Any, self._redis.srem(FLEET, *gone))
        return [json.loads(body) for body in bodies if body is not None]
