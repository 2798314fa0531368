"""Chooses which of many equal refusals are written down. Anyone can cause as many as they like, and an entry for each
would push everything else out of the log."""

from __future__ import annotations

import time

HOUR_S = 3600.0
MOST = 10_000


class Tally:
    """Writes down the first of an hour, the tenth, the hundredth and so on: a million refusals leave seven entries."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], tuple[float, int]] = {}

    def worth_telling(self, *what: str) -> int | None:
        """How many there were within the hour, if this one is to be written down."""
        now = time.monotonic()
        since, before = self._counts.get(what, (now, 0))
        if now - since >= HOUR_S:
            since, before = now, 0
        if len(self._counts) >= MOST:
            self._counts.clear()
        self._counts[what] = (since, before + 1)
        return before + 1 if _power_of_ten(before + 1) else None


def _power_of_ten(count: int) -> bool:
    return str(count).rstrip("0") == "1"
