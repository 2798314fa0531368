"""Metrics that are means of one value a sample: what is right of it, and whether all of it is."""

from __future__ import annotations

import numpy as np

from workers.engine.metrics.fitting import ONE_CLASS, Array, FittedRows, NotApplicable
from workers.engine.metrics.resampling import Statistic


def mean_statistic(before: Array, after: Array) -> Statistic:
    """The mean of one value a sample, [samples] each."""
    return ratio_statistic(before, after, np.ones(len(before)))


def ratio_statistic(before: Array, after: Array, below: Array) -> Statistic:
    """A sum over samples, divided by another, [samples] each."""
    columns = np.stack([before, after, below], axis=1).astype(np.float64)

    def statistic(draws: Array) -> tuple[Array, Array]:
        sums = draws @ columns
        return sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]

    return statistic


def correct_rows(rows: FittedRows) -> tuple[Array, Array]:
    """Of each row the share of labels that is right, float and int8: 0 or 1 but for several labels a row."""
    before, after = ((each == rows.target).reshape(len(rows.target), -1).mean(1) for each in rows.predicted)
    return before, after


def rows_of_samples(rows: FittedRows) -> Array:
    """How many rows each sample has, [samples]."""
    return np.bincount(rows.sample, minlength=rows.samples).astype(np.float64)


def correct_share(rows: FittedRows) -> Statistic:
    """The share of all rows that is right, whole samples drawn."""
    before, after = (np.bincount(rows.sample, right, rows.samples) for right in correct_rows(rows))
    return ratio_statistic(before, after, rows_of_samples(rows))


def all_correct(rows: FittedRows) -> tuple[Array, Array]:
    """Whether everything of a sample is right, bool [samples that have something to be right about] each."""
    sizes = rows_of_samples(rows)
    wrong = [np.bincount(rows.sample, right < 1, rows.samples) for right in correct_rows(rows)]
    return wrong[0][sizes > 0] == 0, wrong[1][sizes > 0] == 0


def hinge_loss(rows: FittedRows) -> Statistic:
    """The mean of 1 less the margin, where that is positive; of several classes the margin is to the best wrong one
    (Crammer and Singer 2001)."""
    losses = (np.maximum(1 - _margin(rows, each), 0) for each in rows.scores)
    before, after = (np.bincount(rows.sample, each, rows.samples) for each in losses)
    return ratio_statistic(before, after, rows_of_samples(rows))


def _margin(rows: FittedRows, scores: Array) -> Array:
    if rows.task == "multilabel":
        raise NotApplicable(ONE_CLASS)
    if rows.task == "binary":
        return np.where(rows.target == 1, scores, -scores)
    place = np.arange(len(scores)), rows.target
    wrong = scores.copy()
    wrong[place] = -np.inf
    return np.asarray(scores[place] - wrong.max(1))
