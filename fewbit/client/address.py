"""Checks the address and the key before anything is sent. Messages never contain the key."""

from __future__ import annotations

import httpx2

from fewbit.errors import FewbitError

LARGEST_PORT = 65535


def parse_url(given: str) -> httpx2.URL:
    """The URL in ``given``. Raises ``FewbitError`` for anything but http:// and https://."""
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


def parse_key(given: str) -> str:
    """The key, stripped of white space. Raises ``FewbitError`` for what cannot be a key."""
    key = given.strip()
    if key.isascii() and key.isprintable() and " " not in key:
        return key
    raise FewbitError.of(
        "unauthorized",
        "The API key is malformed: a key is printable ASCII characters, without spaces or line breaks.",
        remedy="Copy the whole key again (FEWBIT_KEY, --key), without anything around it.",
    )  # fmt: skip


def _wrong_address(given: str, why: str) -> FewbitError:
    detail = f"{given!r} is not the address of a service: {why.rstrip('.')}."
    remedy = "Write it like http://127.0.0.1:8000 (FEWBIT_URL, --url)."
    return FewbitError.of("invalid-request", detail, remedy=remedy)
