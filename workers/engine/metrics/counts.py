"""Metrics of predicted classes: functions of how many are true, predicted and both, for each class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from workers.engine.metrics.fitting import Array, FittedRows
from workers.engine.metrics.resampling import Statistic


@dataclass(frozen=True)
class Counts:
    """Counts in each draw: ``right``, ``predicted`` and ``true`` [draws, classes]; ``total`` [draws, 1]. ``averaged``:
    macro, over the classes that occur (torchmetrics leaves the others out, except for labels)."""

    right: Array
    predicted: Array
    true: Array
    total: Array
    averaged: bool

    @property
    def wrong(self) -> Array:
        """Predicted and not true."""
        return self.predicted - self.right

    @property
    def missed(self) -> Array:
        return self.true - self.right

    @property
    def rejected(self) -> Array:
        """Neither predicted nor true."""
        return self.total - self.predicted - self.missed

    def mean(self, scores: Array) -> Array:
        """The mean over classes; an undefined score counts as 0."""
        scores = np.nan_to_num(scores, nan=0.0)
        if not self.averaged:
            return np.asarray(scores.mean(-1))
        occurs = (self.predicted + self.missed) > 0
        return np.asarray((scores * occurs).sum(-1) / occurs.sum(-1))


def precision(counts: Counts) -> Array:
    return counts.mean(counts.right / counts.predicted)


def recall(counts: Counts) -> Array:
    return counts.mean(counts.right / counts.true)


def f1_score(counts: Counts) -> Array:
    return counts.mean(2 * counts.right / (counts.predicted + counts.true))


def jaccard_index(counts: Counts) -> Array:
    return counts.mean(counts.right / (counts.predicted + counts.missed))


def specificity(counts: Counts) -> Array:
    return counts.mean(counts.rejected / (counts.rejected + counts.wrong))


def negative_predictive_value(counts: Counts) -> Array:
    return counts.mean(counts.rejected / (counts.rejected + counts.missed))


def hamming_distance(counts: Counts) -> Array:
    if counts.averaged:
        return counts.mean(1 - np.nan_to_num(counts.right / counts.true))
    return counts.mean((counts.wrong + counts.missed) / counts.total)


def cohen_kappa(counts: Counts) -> Array:
    right, predicted, true, total = _table(counts, pooled=False)
    agreement, chance = right / total, (predicted * true).sum(-1) / total**2
    return np.asarray((agreement - chance) / (1 - chance))


def matthews_corrcoef(counts: Counts) -> Array:
    """Gorodkin 2004, the correlation of two assignments to classes; for labels, over all of them pooled."""
    right, predicted, true, total = _table(counts, pooled=True)
    spread = (total**2 - np.square(predicted).sum(-1)) * (total**2 - np.square(true).sum(-1))
    return np.asarray((right * total - (predicted * true).sum(-1)) / np.sqrt(spread))


COUNTED: dict[str, Callable[[Counts], Array]] = {
    "precision": precision,
    "recall": recall,
    "f1_score": f1_score,
    "jaccard_index": jaccard_index,
    "specificity": specificity,
    "negative_predictive_value": negative_predictive_value,
    "hamming_distance": hamming_distance,
    "cohen_kappa": cohen_kappa,
    "matthews_corrcoef": matthews_corrcoef,
}


def count_statistic(rows: FittedRows, formula: Callable[[Counts], Array]) -> Statistic:
    """The statistic that applies ``formula`` to the counts in each draw."""
    true = _indicators(rows, rows.target)
    sides = []
    for predicted in rows.predicted:
        both = np.where(predicted == rows.target, rows.target, -1) if rows.task == "multiclass" else None
        right = _indicators(rows, both if both is not None else predicted * rows.target)
        sides.append((right, _indicators(rows, predicted)))
    sizes = np.bincount(rows.sample, minlength=rows.samples).astype(np.float64)
    averaged = rows.task == "multiclass"

    def statistic(draws: Array) -> tuple[Array, Array]:
        truth, total = _sum_per_draw(draws, true), (draws @ sizes)[:, None]
        before, after = (
            formula(Counts(_sum_per_draw(draws, right), _sum_per_draw(draws, predicted), truth, total, averaged))
            for right, predicted in sides
        )
        return before, after

    return statistic


def _indicators(rows: FittedRows, values: Array) -> sparse.csr_array:
    """[samples, classes]: how many of a sample's rows are of each class; -1 stands for no class."""
    if rows.task != "multiclass":
        return sparse.csr_array(values.reshape(len(values), -1).astype(np.float64))
    has_class = values >= 0
    place = (rows.sample[has_class], values[has_class])
    return sparse.csr_array((np.ones(int(has_class.sum())), place), shape=(rows.samples, rows.classes))


def _sum_per_draw(draws: Array, indicators: sparse.csr_array) -> Array:
    return np.asarray((indicators.T @ draws.T).T)


def _table(counts: Counts, pooled: bool) -> tuple[Array, Array, Array, Array]:
    """(right [draws], predicted and true [draws, classes], total [draws]); a label is two classes, no and yes."""
    if counts.averaged:
        return counts.right.sum(-1), counts.predicted, counts.true, counts.total[:, 0]
    labels = counts.right.shape[-1]
    total = counts.total[:, 0] * (labels if pooled else 1)
    predicted, true = counts.predicted.sum(-1), counts.true.sum(-1)
    two = (np.stack([total - yes, yes], -1) for yes in (predicted, true))
    return (counts.right + counts.rejected).sum(-1), *two, total
