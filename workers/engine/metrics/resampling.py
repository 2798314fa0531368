"""The paired bootstrap: the same samples are drawn for float and int8, and their differences give an interval.

A draw is a row of counts, how often each sample was drawn. A metric made of sums over samples is then a product of
matrices, for all draws at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

Array = np.ndarray[Any, Any]

Statistic = Callable[[Array], tuple[Array, Array]]
"""Counts [draws, samples] -> the metric for float and for int8, one value per draw."""

MOST_DRAWS, FEWEST_DRAWS = 1000, 200
MOST_WORK = 2e7  # draws * samples * columns: about a second on one core
CHUNK = 1 << 20  # counts in memory at a time
LEAST_FINITE = 0.9  # share of draws that must give a number


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of the paired difference, and the number of ``draws`` that gave it."""

    low: float
    high: float
    p_value: float
    draws: int


def affordable_draws(samples: int, columns: int = 1) -> int:
    """As many draws as take about a second."""
    return int(np.clip(MOST_WORK / max(samples * columns, 1), FEWEST_DRAWS, MOST_DRAWS))


def counts(samples: int, draws: int, seed: int) -> Iterator[Array]:
    """Draws with replacement, ``draws`` in all, in chunks of float64 [draws, samples]."""
    random = np.random.default_rng(seed)
    rows = max(1, CHUNK // samples)
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        drawn = random.integers(0, samples, (count, samples)) + np.arange(count)[:, None] * samples
        yield np.bincount(drawn.ravel(), minlength=count * samples).reshape(count, samples).astype(np.float64)


def paired_bootstrap(statistic: Statistic, samples: int, draws: int, seed: int) -> Interval | None:
    """95 % interval and two-sided p-value of after minus before. None where too few draws give a number, or there is
    only one sample.

    The percentile interval is too narrow by the factor sqrt((n - 1) / n) and uses the normal in place of Student's t;
    wider percentiles correct both (Hesterberg 2015, "What teachers should know about the bootstrap", section 4.2).
    """
    if samples < 2:
        return None
    with np.errstate(all="ignore"):
        chunks = [np.subtract(*reversed(statistic(drawn))) for drawn in counts(samples, draws, seed)]
    differences = np.concatenate(chunks)
    differences = differences[np.isfinite(differences)]
    if len(differences) < LEAST_FINITE * draws:
        return None
    tail = float(stats.norm.cdf(-np.sqrt(samples / (samples - 1)) * stats.t.ppf(0.975, samples - 1)))
    low, high = np.quantile(differences, [tail, 1 - tail])
    return Interval(float(low), float(high), _p_value(differences), len(differences))


def _p_value(differences: Array) -> float:
    """Twice the share of draws beyond zero: the interval inverted (Efron and Tibshirani 1993, 15.4)."""
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))
