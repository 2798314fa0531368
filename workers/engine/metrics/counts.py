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
    """[draws, classes] each: right, predicted, true; ``total`` [draws, 1]. ``averaged``: macro, over the classes that
    occur (torchmetrics leaves the others out, except of labels)."""

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
        """Of the classes' scores, 0 where one is not defined."""
        scores = np.nan_to_num(scores, nan=0.0)
        if not self.averaged:
            return np.asarray(scores.mean(-1))
        occurs = (self.predicted + self.missed) > 0
        return np.asarray((scores * occurs).sum(-1) / occurs.sum(-1))


def precision(of: Counts) -> Array:
    return of.mean(of.right / of.predicted)


def recall(of: Counts) -> Array:
    return of.mean(of.right / of.true)


def f1_score(of: Counts) -> Array:
    return of.mean(2 * of.right / (of.predicted + of.true))


def jaccard_index(of: Counts) -> Array:
    return of.mean(of.right / (of.predicted + of.missed))


def specificity(of: Counts) -> Array:
    return of.mean(of.rejected / (of.rejected + of.wrong))


def negative_predictive_value(of: Counts) -> Array:
    return of.mean(of.rejected / (of.rejected + of.missed))


def hamming_distance(of: Counts) -> Array:
    if of.averaged:
        return of.mean(1 - np.nan_to_num(of.right / of.true))
    return of.mean((of.wrong + of.missed) / of.total)


def cohen_kappa(of: Counts) -> Array:
    right, predicted, true, total = _table(of, pooled=False)
    agreement, chance = right / total, (predicted * true).sum(-1) / total**2
    return np.asarray((agreement - chance) / (1 - chance))


def matthews_corrcoef(of: Counts) -> Array:
    """Gorodkin 2004, the correlation of two assignments to classes; of labels, over all of them pooled."""
    right, predicted, true, total = _table(of, pooled=True)
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
    """``formula`` of the counts in each draw."""
    true = _indicators(rows, rows.target)
    sides = []
    for predicted in rows.predicted:
        both = np.where(predicted == rows.target, rows.target, -1) if rows.task == "multiclass" else None
        right = _indicators(rows, both if both is not None else predicted * rows.target)
        sides.append((right, _indicators(rows, predicted)))
    sizes = np.bincount(rows.sample, minlength=rows.samples).astype(np.float64)
    averaged = rows.task == "multiclass"

    def statistic(draws: Array) -> tuple[Array, Array]:
        truth, total = _drawn(draws, true), (draws @ sizes)[:, None]
        before, after = (
            formula(Counts(_drawn(draws, right), _drawn(draws, predicted), truth, total, averaged))
            for right, predicted in sides
        )
        return before, after

    return statistic


def _indicators(rows: FittedRows, values: Array) -> sparse.csr_array:
    """[samples, classes]: how many of a sample's rows are of each class; -1 is none."""
    if rows.task != "multiclass":
        return sparse.csr_array(values.reshape(len(values), -1).astype(np.float64))
    some = values >= 0
    place = (rows.sample[some], values[some])
    return sparse.csr_array((np.ones(int(some.sum())), place), shape=(rows.samples, rows.classes))


def _drawn(draws: Array, of: sparse.csr_array) -> Array:
    return np.asarray((of.T @ draws.T).T)


def _table(of: Counts, pooled: bool) -> tuple[Array, Array, Array, Array]:
    """(right [draws], predicted and true [draws, classes], total [draws]); a label is two classes, no and yes."""
    if of.averaged:
        return of.right.sum(-1), of.predicted, of.true, of.total[:, 0]
    labels = of.right.shape[-1]
    total = of.total[:, 0] * (labels if pooled else 1)
    predicted, true = of.predicted.sum(-1), of.true.sum(-1)
    two = (np.stack([total - each, each], -1) for each in (predicted, true))
    return (of.right + of.rejected).sum(-1), *two, total
