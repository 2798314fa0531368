"""The difference of two proportions on the same samples: its interval and its test, both without resampling."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from fewbit.contract.metrics import is_lower_better
from fewbit.contract.report import Metric

Array = np.ndarray[Any, Any]

Z95 = 1.959963984540054


def proportion_metric(name: str, before: Array, after: Array) -> Metric:
    """The share of correct samples; ``before`` and ``after`` bool [samples]."""
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    low, high = paired_interval(lost, gained, before.size)
    return Metric(
        name=name,
        before=float(before.mean()),
        after=float(after.mean()),
        delta=(gained - lost) / before.size,
        ci95=(low, high),
        p_value=mcnemar(lost, gained),
        note=describe_interval(name, low, high, before.size),
    )


def paired_interval(lost: int, gained: int, samples: int) -> tuple[float, float]:
    """95 % interval of the paired difference of two proportions (Bonett and Price 2012, adjusted Wald).

    Unlike a bootstrap it stays honest when no sample changed: the interval is then not zero wide.
    """
    down, up = (lost + 1) / (samples + 2), (gained + 1) / (samples + 2)
    spread = Z95 * float(np.sqrt(max(down + up - (up - down) ** 2, 0.0) / (samples + 2)))
    return max(-1.0, up - down - spread), min(1.0, up - down + spread)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p-value of McNemar's test (McNemar 1947): do as many samples become correct as wrong?"""
    changed = lost + gained
    return float(stats.binomtest(lost, changed, 0.5).pvalue) if changed else 1.0


def describe_interval(name: str, low: float, high: float, samples: int) -> str:
    """What the 95 % interval of a difference says, in words."""
    count = "1 sample" if samples == 1 else f"{samples} samples"
    if low <= 0 <= high:
        return f"not distinguishable from zero with {count}"
    is_loss = (low > 0) == is_lower_better(name)
    return f"a {'loss' if is_loss else 'gain'} beyond chance with {count}"
