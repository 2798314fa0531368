"""HTTP/1.1 as uvicorn speaks it, with bounds it does not have: number and size of headers, the time they may take, the
number of connections. A request beyond one of them is answered with a problem, and the connection is closed. Clients
that do not read their answer, or go on sending a body that was refused, are cut off.

llhttp, beneath, refuses what is ambiguous (Content-Length beside Transfer-Encoding, two Content-Lengths, obsolete line
folding): its refusals become problems here too.
"""

from __future__ import annotations

import asyncio
import secrets
from asyncio.events import TimerHandle
from typing import cast

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.http.connection_limit import ConnectionLimit
from service.http.problems import HeadersTooLarge, MalformedRequest, Refusal, ServiceUnavailable, TooSlow, UriTooLong
from service.http.security_headers import HEADERS
from service.http.slow_readers import Outflow

log = structlog.get_logger("fewbit.gateway")
MOST_HEADERS, MOST_HEADER_BYTES, LONGEST_TARGET = 100, 32 * 1024, 8 * 1024


def guarded(most_connections: int, idle_s: float) -> type[GuardedProtocol]:
    """The protocol of one process. Headers have half of ``idle_s`` in all, readers four times as much (``Outflow``)."""
    return type(
        "GuardedProtocol", (GuardedProtocol,), {"connection_limit": ConnectionLimit(most_connections), "idle_s": idle_s}
    )


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    connection_limit: ConnectionLimit
    idle_s: float

    _header_bytes = 0
    _clock: TimerHandle | None = None
    _in_head = True
    _in_body = False
    _counted = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._outflow = Outflow(transport)
        super().connection_made(cast(asyncio.Transport, self._outflow))
        self._start_clock()
        self._looks = self.loop.call_later(self.idle_s, self._look)
        if not self.connection_limit.admit(self):
            self._refuse(ServiceUnavailable("As many connections are open as this gateway takes."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._looks.cancel()
        self.connection_limit.release(self)
        super().connection_lost(exc)

    @property
    def is_served(self) -> bool:
        """The key was good (``service.keys.authentication``), and the answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete and "let_in" in self.cycle.scope

    def cut(self) -> None:
        self._outflow.cut()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_head:  # still: a header that never ends is heard of by no callback
            self._header_bytes += len(data)
            if self._header_bytes > MOST_HEADER_BYTES:
                self._refuse(HeadersTooLarge(MOST_HEADERS, MOST_HEADER_BYTES))

    # What the parser calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._header_bytes, self._counted = True, 0, 0
        self.connection_limit.move_to_back(self)
        self._start_clock()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > LONGEST_TARGET:
            self._refuse(UriTooLong("target", LONGEST_TARGET))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._counted += len(name) + len(value)
        if len(self.headers) >= MOST_HEADERS or self._counted > MOST_HEADER_BYTES:
            self._refuse(HeadersTooLarge(MOST_HEADERS, MOST_HEADER_BYTES))
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._stop_clock()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_clock()
        if self.cycle is not None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.connection_limit.move_to_back(self)
        if self._in_body:  # of a request that was refused: the rest may come, but not for ever
            self._start_clock()

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedRequest(msg))

    # Refusals, before there is an app to answer

    def _refuse(self, refusal: Refusal) -> None:
        if self.transport.is_closing():
            return
        request_id = f"req_{secrets.token_hex(12)}"
        answer = refusal.render(request_id)
        headers = {**dict(HEADERS), **dict(answer.headers), "x-request-id": request_id, "connection": "close"}
        lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items()]
        self.transport.write(b"".join([STATUS_LINE[answer.status_code], *lines, b"\r\n", bytes(answer.body)]))
        self.transport.close()

    def _start_clock(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(self.idle_s / 2, self._too_slow)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self) -> None:
        self._clock = None
        if self._in_body:
            self.cut()
        else:
            self._refuse(TooSlow(f"The request's headers were not complete after {self.idle_s / 2:g} s."))

    def _look(self) -> None:
        if self._outflow.stands_still(self.idle_s):
            log.info("reader cut off", client=self.client[0] if self.client else "")
            self.cut()
        else:
            self._looks = self.loop.call_later(self.idle_s, self._look)
