"""Outages of Redis and of the broker: which errors pass and which stay, and writes that outlive an outage."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeVar

from kombu.exceptions import OperationalError
from redis import exceptions
from tenacity import Retrying, retry_if_exception_type, stop_before_delay, wait_chain, wait_fixed

T = TypeVar("T")

_AWAY = (
    exceptions.ConnectionError,  # refused, reset, unknown host, still loading its data
    exceptions.TimeoutError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,  # a replica, until the failover is through
    exceptions.MasterDownError,
    OperationalError,  # kombu's wrapping of all of these
)
_REFUSED = (
    exceptions.AuthenticationError,  # a ConnectionError, as the next one
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
    ssl.SSLCertVerificationError,
    PermissionError,  # of a Unix socket
)


def is_outage(error: BaseException) -> bool:
    """Whether the same call may succeed later, with nothing changed here. A wrong password, address or module stays
    wrong, and so does a mistake in the code."""
    return isinstance(error, _AWAY) and not any(isinstance(cause, _REFUSED) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from or over."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


_RESTART = (exceptions.ConnectionError, exceptions.TimeoutError)  # a Redis that is loading its data raises the first
_PAUSES = wait_chain(*(wait_fixed(seconds) for seconds in (0.05, 0.1, 0.2, 0.5, 1.0)))  # the last one again and again


def persist(write: Callable[[], T], patience_s: float) -> T:
    """Repeat a write that may be repeated until Redis answers. Raises Redis's error after ``patience_s`` seconds."""
    return _retrying(patience_s)(write)


@lru_cache
def _retrying(patience_s: float) -> Retrying:
    """Threads may share it: what it counts is kept for each of them."""
    is_restart = retry_if_exception_type(_RESTART)
    return Retrying(retry=is_restart, wait=_PAUSES, stop=stop_before_delay(patience_s), reraise=True)
