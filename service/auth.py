"""Bearer keys (RFC 6750): everything needs one but health, docs and the pages about problems."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from service.problems import Unauthorized

OPEN = ("/health/", "/docs", "/openapi.json", "/problems")


class BearerAuth:
    """Pure ASGI, so that it costs microseconds. ``digests``: SHA-256 of each key; empty switches it off."""

    def __init__(self, app: ASGIApp, digests: Sequence[bytes]) -> None:
        self.app = app
        self.digests = tuple(digests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["user"] = self._user(scope)
        await self.app(scope, receive, send)

    def _user(self, scope: Scope) -> str:
        """Who asks, as something that may be stored: never the key itself. Raises ``Unauthorized``."""
        if not self.digests or is_open(scope["path"]):
            return "anyone"
        presented = bearer_digest(scope)
        if presented is None:
            raise Unauthorized("The request carries no `Authorization: Bearer <key>`.")
        matches = [hmac.compare_digest(presented, digest) for digest in self.digests]  # all of them: constant time
        if not any(matches):
            raise Unauthorized("The API key is not one of this service's.")
        return presented.hex()[:32]


def is_open(path: str) -> bool:
    return path.startswith(OPEN)


def bearer_digest(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, key = value.partition(b" ")
            return sha256(key.strip()).digest() if kind.lower() == b"bearer" and key.strip() else None
    return None
