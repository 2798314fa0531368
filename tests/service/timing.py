"""Whether one thing takes longer than another, by an interval that says how sure it is."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

TELLING = 0.1
"""The share of a request's time that counts as a difference: some 0.1 ms, which networks add by chance. Not a fixed
time: on a busy machine everything takes longer, what should not have been read as well."""
FEWEST, MOST = 150, 3000
Z = 3.29  # 99.9 % of a normal distribution

Pairs = list[tuple[float, float]]
"""How long the one and the other took, in seconds, one right after the other."""


@dataclass(frozen=True)
class Difference:
    """``low`` to ``high``, in seconds, holds the median of (one - other) 999 times in 1000, however they are spread:
    two order statistics, after the sign test (Conover 1999, Practical Nonparametric Statistics, 3.2)."""

    low: float
    high: float
    telling: float

    @classmethod
    def of(cls, pairs: Pairs) -> Difference:
        ordered, reach = sorted(one - other for one, other in pairs), math.ceil(Z * math.sqrt(len(pairs)) / 2)
        middle = len(ordered) // 2
        telling = TELLING * statistics.median(other for _, other in pairs)
        return cls(ordered[middle - reach], ordered[min(middle + reach, len(ordered) - 1)], telling)

    @property
    def is_sure(self) -> bool:
        """Narrow enough that a difference of three times ``telling`` could not hide in it."""
        return self.high - self.low < 2 * self.telling

    @property
    def tells(self) -> bool:
        return self.low > self.telling or self.high < -self.telling


def measured(one: Callable[[], None], other: Callable[[], None]) -> Pairs:
    """Until they are sure, or there are ``MOST``. The interval's width decides when to stop, never where it lies. The
    order changes with each pair, so that what disturbs one disturbs both."""
    pairs: Pairs = []
    while len(pairs) < FEWEST or (len(pairs) < MOST and not Difference.of(pairs).is_sure):
        for _ in range(25):
            first, second = _seconds(one), _seconds(other)
            pairs.append((first, second))
            second, first = _seconds(other), _seconds(one)
            pairs.append((first, second))
    return pairs


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
