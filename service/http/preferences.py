"""``Prefer: wait=N`` (RFC 7240): how long the caller would rather wait for an end than poll."""

from __future__ import annotations

import re

from starlette.requests import Request

LONGEST_WAIT_S = 60
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})\"?", re.IGNORECASE)


def preferred_wait(request: Request) -> int:
    """Seconds, at most 60; 0 when nothing was said."""
    prefer = request.headers.get("prefer")
    if prefer is None:
        return 0
    wanted = _WAIT.search(prefer)
    return min(int(wanted[1]), LONGEST_WAIT_S) if wanted else 0
