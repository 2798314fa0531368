"""Measures whether the other side reads what is sent to it.

A server that has written an answer looks done, while a client that reads a byte a second keeps the connection and its
memory for days. How much the kernel has taken is what was written less what the transport still holds.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Any

from service.http.bounds import SLOWEST_BYTES_PER_S

LOOKS = 4
MOST_UNSENT = 64 * 1024
"""Of a connection, in the kernel. Without it Linux takes megabytes ahead of the reader, and asks for more in steps of
megabytes, so that one who reads a few kilobytes a second would not be told from one who reads none."""


class Outflow:
    """A transport that counts what is written."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._written = 0
        self._taken: list[int] = []
        self._set(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MOST_UNSENT)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._written += len(data)
        self._transport.write(data)

    def stands_still(self, period_s: float) -> bool:
        """To be asked every ``period_s``: whether something has been waiting for ``LOOKS`` periods, in which less than
        ``SLOWEST_BYTES_PER_S`` was taken."""
        waiting = self._transport.get_write_buffer_size()
        self._taken = [*self._taken[-LOOKS:], self._written - waiting] if waiting else []
        slowest = LOOKS * period_s * SLOWEST_BYTES_PER_S
        return len(self._taken) > LOOKS and self._taken[-1] - self._taken[0] < slowest

    def cut(self) -> None:
        """Reset the connection: what was not sent is dropped, by the kernel too."""
        self._set(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _set(self, level: int, name: int, value: int | bytes) -> None:
        with suppress(OSError):  # closed meanwhile, or no TCP
            self._transport.get_extra_info("socket").setsockopt(level, name, value)
