"""Ids of a Redis stream's entries, as clients send them back: ``<milliseconds>-<number>``, each of 64 bits."""

from __future__ import annotations

import re

_NUMBERS = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)
LARGEST = 2**64 - 1


def is_entry_id(text: str) -> bool:
    """Whether Redis takes ``text`` for the id of an entry; it answers others with an error."""
    found = _NUMBERS.fullmatch(text)
    return found is not None and all(int(each or 0) <= LARGEST for each in found.groups())
