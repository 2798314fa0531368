"""Idempotency keys: the first request with a key runs, the same one again gets the same answer.

After draft-ietf-httpapi-idempotency-key-header. A key is kept for a day after its answer, and for ten minutes while the
request runs, so that a gateway that dies does not block it forever.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from store.records import idempotency_key

RUNNING_S = 600
KEPT_S = 24 * 3600


class InProgress(Exception):
    """The first request with this key has no answer yet."""


class Reused(Exception):
    """The key belongs to a different request."""


@dataclass(frozen=True)
class Stored:
    """An answer as it was given."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Idempotency:
    """``scope`` keeps users apart; ``fingerprint`` tells requests apart."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def begin(self, scope: str, key: str, fingerprint: str) -> Stored | None:
        """``None``: the request is the caller's to run, and to ``finish`` or ``abandon``. Raises ``InProgress`` and
        ``Reused``."""
        name = idempotency_key(f"{scope}:{key}")
        mine = json.dumps({"fingerprint": fingerprint})
        if await self._redis.set(name, mine, nx=True, ex=RUNNING_S):
            return None
        body = await cast(Awaitable[bytes | None], self._redis.get(name))
        if body is None:  # it expired just now
            return await self.begin(scope, key, fingerprint)
        known = json.loads(body)
        if known["fingerprint"] != fingerprint:
            raise Reused
        if "status" not in known:
            raise InProgress
        return Stored(known["status"], known["headers"], b64decode(known["body"]))

    async def finish(
        self, scope: str, key: str, fingerprint: str, status: int, headers: Mapping[str, str], body: bytes
    ) -> None:
        """Keep the answer for whoever asks again. A 5xx is never kept: the next request may run."""
        if status >= 500:
            await self.abandon(scope, key)
            return
        answer = {
            "fingerprint": fingerprint,
            "status": status,
            "headers": dict(headers),
            "body": b64encode(body).decode(),
        }
        await self._redis.set(idempotency_key(f"{scope}:{key}"), json.dumps(answer), ex=KEPT_S)

    async def abandon(self, scope: str, key: str) -> None:
        """The request came to no answer worth keeping."""
        await self._redis.delete(idempotency_key(f"{scope}:{key}"))
