"""Headers every answer has unless its endpoint knows better (OWASP REST Security Cheat Sheet): nothing of an answer is
to be run, framed, guessed at, or kept by anyone on the way."""

from __future__ import annotations

from starlette.types import Message

HEADERS = (
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
)
_ENCODED = tuple((name.encode(), value.encode()) for name, value in HEADERS)


def secure(message: Message) -> None:
    """Add what an answer's start does not have. One with an ETag may be kept by its reader, and asked for again."""
    given = {name.lower() for name, _ in message["headers"]}
    if b"etag" in given and b"cache-control" not in given:
        message["headers"].append((b"cache-control", b"private, no-cache"))
        given.add(b"cache-control")
    message["headers"] += [each for each in _ENCODED if each[0] not in given]
