"""Headers of every answer whose endpoint sets no others (OWASP REST Security Cheat Sheet): no part of an answer may be
run, framed, sniffed or cached on the way."""

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


def add_security_headers(message: Message) -> None:
    """Add the headers that an answer lacks. An answer with an ETag may be cached by its reader, and revalidated."""
    given = {name.lower() for name, _ in message["headers"]}
    if b"etag" in given and b"cache-control" not in given:
        message["headers"].append((b"cache-control", b"private, no-cache"))
        given.add(b"cache-control")
    message["headers"] += [header for header in _ENCODED if header[0] not in given]
