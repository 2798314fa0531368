"""Writes that outlive a restart of Redis."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain, repeat
from typing import TypeVar

import redis

T = TypeVar("T")

_OUTAGES = (redis.ConnectionError, redis.TimeoutError)  # a Redis that is still loading its data is a ConnectionError
_PAUSES_S = (0.05, 0.1, 0.2, 0.5)  # and then a second each


def persist(write: Callable[[], T], patience_s: float) -> T:
    """Repeat a write that may be repeated until Redis answers. Raises Redis's error after ``patience_s`` seconds."""
    deadline = time.monotonic() + patience_s
    for pause_s in chain(_PAUSES_S, repeat(1.0)):
        try:
            return write()
        except _OUTAGES:
            if time.monotonic() + pause_s >= deadline:
                raise
            time.sleep(pause_s)
    raise AssertionError("repeat() does not end")
