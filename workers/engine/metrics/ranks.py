"""Metrics of order and of confidence, for all draws at once: values are sorted once, and the counts of a draw are
summed along them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from workers.engine.metrics.fitting import Array, FittedRows
from workers.engine.metrics.resampling import Statistic

BINS = 15  # of calibration_error, torchmetrics' default

Curve = Callable[[Array, Array], Array]
"""(positives, negatives) at each distinct score, best first, [draws, scores] -> area [draws]"""


def auroc(positives: Array, negatives: Array) -> Array:
    """The share of pairs in the right order; equal scores count half."""
    above = np.cumsum(positives, 1) - positives / 2
    return np.asarray((negatives * above).sum(1) / (positives.sum(1) * negatives.sum(1)))


def average_precision(positives: Array, negatives: Array) -> Array:
    """Precision at each distinct score, weighted with the recall that it adds."""
    true_positives = np.cumsum(positives, 1)
    taken = true_positives + np.cumsum(negatives, 1)
    return np.asarray(
        (positives * np.divide(true_positives, taken, out=np.zeros_like(taken), where=taken > 0)).sum(1)
        / true_positives[:, -1]
    )


def eer(positives: Array, negatives: Array) -> Array:
    """The mean of two shares where they are closest: of negatives taken, and of positives missed."""
    taken, true_positives = (np.cumsum(counts, 1).astype(np.float32) for counts in (negatives, positives))
    taken, missed = (
        taken / taken[:, -1:],
        1 - true_positives / true_positives[:, -1:],
    )  # float32, to break ties as torchmetrics does
    nearest = np.abs(taken - missed).argmin(1)[:, None]
    return np.asarray(np.take_along_axis(taken + missed, nearest, 1)[:, 0] / 2)


CURVES: dict[str, Curve] = {"auroc": auroc, "average_precision": average_precision, "eer": eer}


def area_statistic(rows: FittedRows, curve: Curve) -> Statistic:
    """The mean area of one class (or label) against the rest, over those that have a positive row."""
    columns = _positive_rows(rows)
    sides = [[_sort_by_score(scores[:, at], positive) for at, positive in columns] for scores in _as_columns(rows)]

    def statistic(draws: Array) -> tuple[Array, Array]:
        weights = draws[:, rows.sample]
        before, after = (
            np.nanmean([_area(weights, curve, *column) for column in side], axis=0)
            if side
            else np.full(len(draws), np.nan)
            for side in sides
        )
        return before, after

    return statistic


def calibration_error(rows: FittedRows) -> Statistic:
    """Expected calibration error (Naeini et al. 2015): confidence minus accuracy in 15 bins of confidence."""
    sides = []
    for scores, predicted in zip(rows.scores, rows.predicted, strict=True):
        binary = rows.task == "binary"
        confidence = scores if binary else scores.max(1)
        right = rows.target if binary else predicted == rows.target
        bins = np.clip(np.ceil(confidence.astype(np.float32) * BINS).astype(np.int64) - 1, 0, BINS - 1)
        inside = np.zeros((rows.samples, BINS))
        np.add.at(inside, (rows.sample, bins), confidence - right)
        sides.append(inside)
    sizes = np.bincount(rows.sample, minlength=rows.samples).astype(np.float64)

    def statistic(draws: Array) -> tuple[Array, Array]:
        total = draws @ sizes
        before, after = (np.abs(draws @ inside).sum(1) / total for inside in sides)
        return before, after

    return statistic


def spearman_corrcoef(rows: FittedRows) -> Statistic:
    """Correlation of ranks, where equal values share a rank; the mean over the output's columns."""
    targets = [_groups(column) for column in rows.target.T]
    sides = [[_groups(column) for column in scores.T] for scores in rows.scores]

    def statistic(draws: Array) -> tuple[Array, Array]:
        truth = [_ranks(draws, *groups) for groups in targets]
        before, after = (
            np.mean(
                [_correlation(draws, _ranks(draws, *one), two) for one, two in zip(side, truth, strict=True)], axis=0
            )
            for side in sides
        )
        return before, after

    return statistic


def _positive_rows(rows: FittedRows) -> list[tuple[int, Array]]:
    """(column of the scores, which rows are positive)."""
    if rows.task == "multiclass":
        return [(label, rows.target == label) for label in np.unique(rows.target)]
    target = rows.target.reshape(len(rows.target), -1) == 1
    return [(column, target[:, column]) for column in range(target.shape[1]) if target[:, column].any()]


def _as_columns(rows: FittedRows) -> tuple[Array, Array]:
    before, after = (scores.reshape(len(scores), -1).astype(np.float32) for scores in rows.scores)
    return before, after


def _sort_by_score(scores: Array, positive: Array) -> tuple[Array, Array, Array]:
    """(order, best first; where distinct scores start; which are positive, in that order)."""
    order, starts, _ = _groups(-scores)
    return order, starts, positive[order]


def _area(weights: Array, curve: Curve, order: Array, starts: Array, positive: Array) -> Array:
    ordered = weights[:, order]
    positives = np.add.reduceat(ordered * positive, starts, axis=1)
    return curve(positives, np.add.reduceat(ordered, starts, axis=1) - positives)


def _groups(values: Array) -> tuple[Array, Array, Array]:
    """(order, smallest first; where distinct values start; the group of every value, in the given order)."""
    order = np.argsort(values, kind="stable")
    new = np.diff(values[order], prepend=-np.inf) != 0
    new[:1] = True
    group = np.empty(len(values), np.int64)
    group[order] = np.cumsum(new) - 1
    return order, np.flatnonzero(new), group


def _ranks(draws: Array, order: Array, starts: Array, group: Array) -> Array:
    sizes = np.add.reduceat(draws[:, order], starts, axis=1)
    return np.asarray((np.cumsum(sizes, 1) - (sizes - 1) / 2)[:, group])


def _correlation(draws: Array, one: Array, other: Array) -> Array:
    total = draws.sum(1, keepdims=True)
    one, other = (values - (draws * values).sum(1, keepdims=True) / total for values in (one, other))
    joint, first, second = ((draws * a * b).sum(1) for a, b in ((one, other), (one, one), (other, other)))
    return np.asarray(joint / np.sqrt(first * second))


def kendall_rank_corrcoef(rows: FittedRows) -> Statistic:
    """Kendall's tau-b, the mean over the output's columns; every draw is sorted again (Knight 1966)."""
    places = np.arange(rows.samples)

    def tau(scores: Array, chosen: Array) -> float:
        pairs = zip(scores[chosen].T, rows.target[chosen].T, strict=True)
        return float(np.mean([stats.kendalltau(*pair).statistic for pair in pairs]))

    def statistic(draws: Array) -> tuple[Array, Array]:
        chosen_rows = [np.repeat(places, draw.astype(np.int64)) for draw in draws]
        before, after = (np.array([tau(scores, chosen) for chosen in chosen_rows]) for scores in rows.scores)
        return before, after

    return statistic
