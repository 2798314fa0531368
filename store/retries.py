"""Writes that outlive a restart of Redis."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import redis
from tenacity import Retrying, retry_if_exception_type, stop_before_delay, wait_chain, wait_fixed

T = TypeVar("T")

_OUTAGES = (redis.ConnectionError, redis.TimeoutError)  # a Redis that is still loading its data is a ConnectionError
_PAUSES = wait_chain(*(wait_fixed(seconds) for seconds in (0.05, 0.1, 0.2, 0.5, 1.0)))  # the last one again and again


def persist(write: Callable[[], T], patience_s: float) -> T:
    """Repeat a write that may be repeated until Redis answers. Raises Redis's error after ``patience_s`` seconds."""
    return _retrying(patience_s)(write)


@lru_cache
def _retrying(patience_s: float) -> Retrying:
    """Threads may share it: what it counts is kept for each of them."""
    is_outage = retry_if_exception_type(_OUTAGES)
    return Retrying(retry=is_outage, wait=_PAUSES, stop=stop_before_delay(patience_s), reraise=True)
