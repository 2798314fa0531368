"""``Range`` and ``If-Range`` (RFC 9110, 13.1.5 and 14)."""

from __future__ import annotations

import re

from starlette.requests import Request

from service.http.problems import RangeNotSatisfiable

_ONE_RANGE = re.compile(r"bytes=\s*(\d{0,20})\s*-\s*(\d{0,20})\s*\Z", re.IGNORECASE)


def requested_range(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """``[start, end)``, or ``None`` for the whole file: no range asked for, one that is not understood, several,
    or one of an older file. Raises ``RangeNotSatisfiable``."""
    header = request.headers.get("range")
    if header is None or request.headers.get("if-range", etag) != etag:
        return None
    found = _ONE_RANGE.match(header.strip())
    if found is None or not (found[1] or found[2]):
        return None
    start, end = _bounds(found[1], found[2], size)
    if found[1] and found[2] and int(found[2]) < int(found[1]):  # not a range at all (14.1.1), so it is passed over
        return None
    if start >= end:
        raise RangeNotSatisfiable(size)
    return start, end


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """``-5``: the last five bytes. ``5-``: from the sixth on. ``5-9``: both included."""
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(int(last) + 1, size) if last else size
