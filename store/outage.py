"""Which errors of Redis and of the broker mean "away for now", and which mean that something is wrong and stays so."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from kombu.exceptions import OperationalError
from redis import exceptions

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
