"""Messages to workers. One that does not get through costs time, never the job: the record is there, and the reaper
sends the message again."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from anyio import to_thread

log = structlog.get_logger("fewbit.gateway")


async def deliver(send: Callable[[], None]) -> None:
    """Call ``send`` in a thread: kombu blocks."""
    try:
        await to_thread.run_sync(send)
    except Exception as error:  # whatever the broker raises: answering an error now would make the caller create twice
        log.warning("message not sent; the reaper will", error=repr(error))
