"""Messages to workers. One that finds the broker away costs time, never the job: the record is there, and the reaper
sends the message again. Any other failure would befall the reaper too: it is the caller's answer."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from anyio import to_thread

from store.queue import BrokerAway

log = structlog.get_logger("fewbit.gateway")


async def deliver(send: Callable[[], None]) -> None:
    """Call ``send`` in a thread: kombu blocks. Raises what would happen to the next message, too."""
    try:
        await to_thread.run_sync(send)
    except BrokerAway as error:  # answering an error now would make the caller create twice
        log.warning("message not sent; the reaper will", error=repr(error))
