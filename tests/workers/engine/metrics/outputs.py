"""Outputs of a float model and of one a little off, with labels, in every form that metrics read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Outputs:
    """[samples, ...] each."""

    before: Array
    after: Array
    labels: Array


def multiclass(samples: int = 150, classes: int = 5, seed: int = 0) -> Outputs:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, samples)
    before = random.normal(size=(samples, classes)) + 1.5 * np.eye(classes)[labels]
    return _off(before, labels, random)


def binary(samples: int = 150, seed: int = 0) -> Outputs:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, samples)
    return _off(random.normal(size=samples) + labels - 0.5, labels, random)


def multilabel(samples: int = 150, labels: int = 4, seed: int = 0) -> Outputs:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, (samples, labels))
    return _off(random.normal(size=(samples, labels)) + truth - 0.5, truth, random)


def tokens(samples: int = 40, length: int = 6, classes: int = 4, seed: int = 0) -> Outputs:
    """One label in five is -100: it does not count."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, (samples, length))
    before = random.normal(size=(samples, length, classes)) + 1.5 * np.eye(classes)[truth]
    return _off(before, np.where(random.random((samples, length)) < 0.2, -100, truth), random)


def regression(samples: int = 150, columns: int = 0, seed: int = 0) -> Outputs:
    """Positive numbers, some of them equal; [samples] without ``columns``."""
    random = np.random.default_rng(seed)
    shape = (samples, columns) if columns else (samples,)
    truth = np.round(np.exp(random.normal(size=shape)), 1) + 0.1
    return _off(truth * np.exp(0.3 * random.normal(size=shape)), truth, random, 0.05)


def retrieval(samples: int = 60, candidates: int = 12, seed: int = 0) -> Outputs:
    """Positive scores, some equal; some samples without a relevant candidate, some with no other."""
    random = np.random.default_rng(seed)
    relevance = (random.random((samples, candidates)) < random.random((samples, 1))).astype(np.int64)
    relevance[0], relevance[1] = 0, 1
    return _off(random.random((samples, candidates)) + 0.5 * relevance + 0.2, relevance, random, 0.05)


FORMS = {"binary": binary, "multiclass": multiclass, "multilabel": multilabel, "tokens": tokens}


def _off(before: Array, labels: Array, random: np.random.Generator, by: float = 0.3) -> Outputs:
    after = before + by * np.abs(random.normal(size=before.shape))
    return Outputs(before.astype(np.float32), after.astype(np.float32), labels)
