"""Bounds of a request that hold before authentication: its target, its Host, and the pace of its body.

Number and size of headers, how long they may take, and readers that do not read are the protocol's part
(``service.http.protocol``).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import MalformedRequest, Misdirected, TooSlow, UriTooLong

LONGEST_PATH, LONGEST_QUERY = 1024, 4096
IDLE_S = 30.0
GRACE_S, SLOWEST_BYTES_PER_S = 30.0, 1024
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?\Z")


class Bounds:
    """Pure ASGI. ``hosts``: the names this service answers to; none means any."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = (), idle_s: float = IDLE_S) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)
        self.idle_s = idle_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ``UriTooLong``, ``MalformedRequest``, ``Misdirected``, and, while the body is read, ``TooSlow``."""
        if scope["type"] == "http":
            check_target(scope)
            self._check_host(scope)
            receive = Pace(receive, self.idle_s).receive
        await self.app(scope, receive, send)

    def _check_host(self, scope: Scope) -> None:
        given = [value for name, value in scope["headers"] if name == b"host"]
        if len(given) > 1 or (not given and scope["http_version"] == "1.1") or (given and not _HOST.match(given[0])):
            raise MalformedRequest("A request has one Host header, with a name and perhaps a port.")
        if self.hosts and given and _name(given[0]) not in self.hosts:
            raise Misdirected


def check_target(scope: Scope) -> None:
    """Raises ``UriTooLong`` and ``MalformedRequest``."""
    if len(scope["raw_path"]) > LONGEST_PATH:
        raise UriTooLong("path", LONGEST_PATH)
    if len(scope["query_string"]) > LONGEST_QUERY:
        raise UriTooLong("query", LONGEST_QUERY)
    if not scope["path"].isprintable():
        raise MalformedRequest("The path holds characters that have no place in one.")


class Pace:
    """The body must keep coming. Only time spent waiting for the other side counts."""

    def __init__(self, receive: Receive, idle_s: float) -> None:
        self._receive = receive
        self._idle_s = idle_s
        self._more = True
        self._bytes = 0
        self._waited = 0.0

    async def receive(self) -> Message:
        if not self._more:
            return await self._receive()  # waits for the other side to leave, which may take as long as it likes
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._idle_s):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow(f"Nothing came for {self._idle_s:g} s.") from None
        self._waited += time.monotonic() - started
        self._bytes += len(message.get("body", b""))
        self._more = bool(message.get("more_body", False))
        if self._more and self._waited > GRACE_S and self._bytes < self._waited * SLOWEST_BYTES_PER_S:
            raise TooSlow(f"The body came with less than {SLOWEST_BYTES_PER_S} bytes a second.")
        return message


def _name(host: bytes) -> str:
    return re.sub(r":\d+\Z", "", host.decode("ascii")).lower()
