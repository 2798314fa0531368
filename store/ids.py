"""Ids that sort by time: a prefix, then 128 bits in base 62: 48 bits of milliseconds, 80 bits of chance.

The alphabet is in ASCII order and the width is fixed, so byte order is time order, and Redis's lexicographic sorted
sets need no scores (https://redis.io/docs/latest/commands/zrangebylex/).
"""

from __future__ import annotations

import secrets
import time
from typing import Literal

Kind = Literal["mdl", "dst", "job", "whk", "dlv"]

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_WIDTH = 22  # ceil(128 / log2(62))


def new_id(kind: Kind) -> str:
    """A fresh id, for example ``job_01uPWz…``."""
    return _encode(kind, int(time.time() * 1000), secrets.randbits(80))


def first_id(kind: Kind, timestamp: float) -> str:
    """The least id that could be made at ``timestamp`` (seconds since the epoch) or later."""
    return _encode(kind, max(0, int(timestamp * 1000)), 0)


def _encode(kind: Kind, milliseconds: int, chance: int) -> str:
    number = (milliseconds << 80) | chance
    digits = []
    for _ in range(_WIDTH):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return f"{kind}_{''.join(reversed(digits))}"
