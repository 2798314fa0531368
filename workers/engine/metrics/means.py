"""Metrics that are means of one value per sample: the correct share of it, and whether all of it is correct."""

from __future__ import annotations

import numpy as np

from workers.engine.metrics.fitting import ONE_CLASS, Array, FittedRows, NotApplicable
from workers.engine.metrics.resampling import Statistic


def mean_statistic(before: Array, after: Array) -> Statistic:
    """The mean of one value per sample; ``before`` and ``after`` [samples]."""
    return ratio_statistic(before, after, np.ones(len(before)))


def ratio_statistic(before: Array, after: Array, below: Array) -> Statistic:
    """A sum over samples divided by another; all arguments [samples]."""
    columns = np.stack([before, after, below], axis=1).astype(np.float64)

    def statistic(draws: Array) -> tuple[Array, Array]:
        sums = draws @ columns
        return sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]

    return statistic


def correct_rows(rows: FittedRows) -> tuple[Array, Array]:
    """The share of correct labels in each row, float and int8: 0 or 1 except for several labels per row."""
    before, after = ((predicted == rows.target).reshape(len(rows.target), -1).mean(1) for predicted in rows.predicted)
    return before, after


def rows_per_sample(rows: FittedRows) -> Array:
    """How many rows each sample has, [samples]."""
    return np.bincount(rows.sample, minlength=rows.samples).astype(np.float64)


def correct_share(rows: FittedRows) -> Statistic:
    """The share of all rows that is correct, whole samples drawn."""
    before, after = (np.bincount(rows.sample, correct, rows.samples) for correct in correct_rows(rows))
    return ratio_statistic(before, after, rows_per_sample(rows))


def all_correct(rows: FittedRows) -> tuple[Array, Array]:
    """Whether all rows of a sample are correct, float and int8: bool [samples that have rows]."""
    sizes = rows_per_sample(rows)
    wrong = [np.bincount(rows.sample, correct < 1, rows.samples) for correct in correct_rows(rows)]
    return wrong[0][sizes > 0] == 0, wrong[1][sizes > 0] == 0


def hinge_loss(rows: FittedRows) -> Statistic:
    """The mean of 1 minus the margin, where that is positive. With several classes, the margin is the distance to the
    best wrong one (Crammer and Singer 2001)."""
    losses = (np.maximum(1 - _margin(rows, scores), 0) for scores in rows.scores)
    before, after = (np.bincount(rows.sample, loss, rows.samples) for loss in losses)
    return ratio_statistic(before, after, rows_per_sample(rows))


def _margin(rows: FittedRows, scores: Array) -> Array:
    if rows.task == "multilabel":
        raise NotApplicable(ONE_CLASS)
    if rows.task == "binary":
        return np.where(rows.target == 1, scores, -scores)
    place = np.arange(len(scores)), rows.target
    wrong = scores.copy()
    wrong[place] = -np.inf
    return np.asarray(scores[place] - wrong.max(1))
