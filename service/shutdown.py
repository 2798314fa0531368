"""Long answers end when the process is asked to stop.

uvicorn first waits for open answers and only then tells the app, so a watcher of a long job would hold a gateway for as
long as the job takes. The signal is therefore listened to here as well, and then passed on.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Made in the event loop of the process."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():  # only there can signals be listened to
            for number in SIGNALS:
                self._listen(number)

    async def until_shutdown(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What ``work`` returns, or ``None`` if the process is asked to stop first."""
        working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            stopping.cancel()

    def _listen(self, number: signal.Signals) -> None:
        before = signal.getsignal(number)

        def heard(received: int, frame: FrameType | None) -> None:
            self._loop.call_soon_threadsafe(self._event.set)
            if callable(before):
                before(received, frame)

        signal.signal(number, heard)


async def cancel_and_wait(task: asyncio.Task[None]) -> None:
    """Cancel ``task`` until it is over: ``wait_for`` of Python 3.11, with which redis-py sends, may swallow a
    cancellation (python/cpython#86296). How the task ends is ignored."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.2)
