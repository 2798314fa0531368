"""Where the service is and what opens it, looked at before anything is sent. A key is never part of what is said."""

from __future__ import annotations

import httpx2

from fewbit.errors import FewbitError

LARGEST_PORT = 65535


def checked_url(given: str) -> httpx2.URL:
    """Raises ``FewbitError`` for what is no http:// or https:// address."""
    try:
        url = httpx2.URL(given.strip())
    except httpx2.InvalidURL as error:
        raise _wrong_address(given, f"{error}") from error
    if url.scheme not in ("http", "https"):
        raise _wrong_address(given, "it does not begin with http:// or https://")
    if not url.host:
        raise _wrong_address(given, "it names no host")
    if url.port is not None and not 1 <= url.port <= LARGEST_PORT:
        raise _wrong_address(given, f"a port is a number from 1 to {LARGEST_PORT}")
    return url


def checked_key(given: str) -> str:
    """Without the white space around it, as a file or a variable may have. Raises ``FewbitError``."""
    key = given.strip()
    if key.isascii() and key.isprintable() and " " not in key:
        return key
    raise FewbitError.of(
        "unauthorized", "The API key is not one: a key is printable ASCII characters without a space or a line break.",
        remedy="Copy it again (FEWBIT_KEY, --key), all of it and nothing else.",
    )  # fmt: skip


def _wrong_address(given: str, why: str) -> FewbitError:
    detail = f"{given!r} is not the address of a service: {why.rstrip('.')}."
    remedy = "Write it like http://127.0.0.1:8000 (FEWBIT_URL, --url)."
    return FewbitError.of("invalid-request", detail, remedy=remedy)
