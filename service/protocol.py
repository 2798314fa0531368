"""HTTP/1.1 as uvicorn speaks it, with bounds it does not have: number and size of headers, the time they may take, the
number of connections. Each ends in a problem of the catalogue, and the connection with it.

llhttp, beneath, refuses what is ambiguous (Content-Length beside Transfer-Encoding, two Content-Lengths, obsolete line
folding): its refusals become problems here too.
"""

from __future__ import annotations

import asyncio
import secrets
from asyncio.events import TimerHandle

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.problems import HeadersTooLarge, MalformedRequest, Refusal, ServiceUnavailable, TooSlow, UriTooLong
from service.security import HEADERS

MOST_HEADERS, MOST_HEADER_BYTES, LONGEST_TARGET = 100, 32 * 1024, 8 * 1024
HEADER_S = 15.0
MOST_CONNECTIONS = 2000


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    _header_bytes = 0
    _head_ends: TimerHandle | None = None
    _in_head = True
    _counted = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()
        if len(self.connections) > MOST_CONNECTIONS:
            self._refuse(ServiceUnavailable("As many connections are open as this gateway takes."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

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
        if self._head_ends is None:
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
        self._in_head = False
        self._stop_clock()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.cycle is not None:
            super().on_message_complete()

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
        self._head_ends = self.loop.call_later(HEADER_S, self._too_slow)

    def _stop_clock(self) -> None:
        if self._head_ends is not None:
            self._head_ends.cancel()
            self._head_ends = None

    def _too_slow(self) -> None:
        self._head_ends = None
        self._refuse(TooSlow(f"The request's headers were not complete after {HEADER_S:g} s."))
