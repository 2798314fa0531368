"""The pickle scanner, which must read anything and never run it: ``workers/intake/pickles.py``."""

from __future__ import annotations

import collections
import os
import pickle
from functools import cache

from tests.fuzz import Target
from tests.fuzz.bytes_changed import changed
from tests.workers.uploads import Hostile
from workers.intake import pickles


@cache
def _seeds() -> list[bytes]:
    values = (collections.OrderedDict(a=1, b=[2.5, "x", None]), Hostile(os.getcwd), {"a": (1, 2, 3)}, {1 << 80, b"x"})
    return [pickle.dumps(value, protocol=number) for value in values for number in range(6)]


def _read(data: bytes) -> None:
    walk = pickles.walk(data)
    assert isinstance(walk.forbidden, str | None)
    assert isinstance(walk.hostile, str | None)


TARGET = Target("pickle", changed(_seeds), _read, ())
