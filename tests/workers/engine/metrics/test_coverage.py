"""The 95 % interval, held against what it promises: simulated pairs of models whose true difference is known.

Two thousand pairs a case: the share that covers is then known to half a percent (one standard error).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fewbit.contract.metrics import family
from tests.workers.engine.metrics.outputs import Array, Outputs
from workers.engine.metrics.fitting import fit
from workers.engine.metrics.registry import measure, resampler
from workers.engine.metrics.resampling import MOST_DRAWS, paired_bootstrap

PAIRS = 2000
MANY = 400_000  # samples from which a true difference is taken where it has no formula

Process = Callable[[np.random.Generator, int], Outputs]


def classifiers(random: np.random.Generator, samples: int) -> Outputs:
    """Three classes, not alike; float is right in four of five or more, and int8 answers anew in one of ten."""
    labels = random.choice(3, samples, p=[0.5, 0.3, 0.2])
    before = np.where(random.random(samples) < 0.8, labels, random.integers(0, 3, samples))
    after = np.where(random.random(samples) < 0.1, random.integers(0, 3, samples), before)
    return Outputs(np.eye(3)[before], np.eye(3)[after], labels)


def regressors(random: np.random.Generator, samples: int) -> Outputs:
    """Errors of variance 1 before and 1.04 after."""
    labels = random.normal(size=samples)
    before = labels + random.normal(size=samples)
    return Outputs(before, before + 0.2 * random.normal(size=samples), labels)


def skewed_regressors(random: np.random.Generator, samples: int) -> Outputs:
    """Errors that grow with the target, which is log-normal."""
    labels = np.exp(0.5 * random.normal(size=samples))
    before = labels * (1 + 0.3 * random.normal(size=samples))
    return Outputs(before, before + 0.1 * random.normal(size=samples), labels)


def taggers(random: np.random.Generator, samples: int) -> Outputs:
    """Eight tokens a text. Some texts are hard: their tokens are wrong, and change, together."""
    labels = random.integers(0, 3, (samples, 8))
    hard = random.random((samples, 1)) < 0.3
    before = np.where(random.random((samples, 8)) < np.where(hard, 0.4, 0.05), (labels + 1) % 3, labels)
    after = np.where(
        random.random((samples, 8)) < np.where(hard, 0.2, 0.01), random.integers(0, 3, (samples, 8)), before
    )
    return Outputs(np.eye(3)[before], np.eye(3)[after], labels)


def measure_coverage(name: str, process: Process, samples: int, truth: float) -> float:
    return float(np.mean(list(_hits(name, process, samples, truth))))


def _hits(name: str, process: Process, samples: int, truth: float) -> Iterator[bool]:
    random = np.random.default_rng(7)
    for pair in range(PAIRS):
        data = process(random, samples)
        low, high = interval(name, data, pair)
        yield low <= truth <= high


def interval(name: str, data: Outputs, seed: int) -> tuple[float, float]:
    """What ``measure`` reports, without the values, which take longer."""
    rows = fit(family(name), data.before, data.after, data.labels)
    if name == "accuracy" and rows.is_one_per_sample:
        return measure(name, data.before, data.after, data.labels, seed).ci95 or (np.nan, np.nan)
    found = paired_bootstrap(resampler(name, rows).statistic, rows.samples, MOST_DRAWS, seed)
    assert found is not None
    return found.low, found.high


def true_difference(name: str, process: Process) -> float:
    data = process(np.random.default_rng(99), MANY)
    return value(name, data, data.after) - value(name, data, data.before)


def value(name: str, data: Outputs, outputs: Array) -> float:
    if name == "f1_score":
        predicted = outputs.argmax(1)
        both = [((predicted == label) & (data.labels == label)).sum() for label in range(3)]
        sums = [(predicted == label).sum() + (data.labels == label).sum() for label in range(3)]
        return float(np.mean([2 * one / other for one, other in zip(both, sums, strict=True)]))
    if name == "accuracy":
        return float((outputs.argmax(-1) == data.labels).mean())
    return float(np.abs(outputs - data.labels).mean())


@pytest.mark.parametrize(
    ("name", "process", "samples", "truth"),
    [
        ("accuracy", classifiers, 200, None),
        ("f1_score", classifiers, 200, None),
        ("mean_squared_error", regressors, 200, 0.04),
        ("mean_absolute_error", skewed_regressors, 100, None),
        ("accuracy", taggers, 100, None),
    ],
    ids=["accuracy", "f1_score", "mean_squared_error", "mean_absolute_error", "accuracy of tokens"],
)
def test_the_interval_covers_the_true_difference_as_often_as_it_says(
    name: str, process: Process, samples: int, truth: float | None
) -> None:
    difference = true_difference(name, process) if truth is None else truth
    assert 0.93 <= measure_coverage(name, process, samples, difference) <= 0.97
