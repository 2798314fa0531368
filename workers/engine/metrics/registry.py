"""Each metric by name: its values, how its draws are computed, and what a reader has to know about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewbit.contract.metrics import WITH_CUTOFF, base, cutoff, family
from fewbit.contract.report import Metric
from workers.engine.metrics import official
from workers.engine.metrics.counts import COUNTED, counted
from workers.engine.metrics.fitting import Array, Fitted, NotApplicable, fitted
from workers.engine.metrics.labels import LABEL_RANKED, of_labels
from workers.engine.metrics.means import all_right, hinge_loss, mean_of, ratio_of, right_rows, right_share
from workers.engine.metrics.paired import in_words, proportion_metric
from workers.engine.metrics.ranks import CURVES, area, calibration_error, kendall_rank_corrcoef, spearman_corrcoef
from workers.engine.metrics.resampling import FEWEST_DRAWS, Statistic, draws_for, paired_bootstrap
from workers.engine.metrics.retrieval import RANKED, per_sample
from workers.engine.metrics.sums import ERRORS, FROM_MOMENTS, from_moments

FEW_CHANGES = 10  # changed predictions below which a bootstrap sees too little
ORDERED = 8  # a draw that goes along an order costs as much as this many sums


@dataclass(frozen=True)
class Drawn:
    """How a metric is computed for many draws. ``work``: what a draw costs for each sample; 0 where each draw
    is computed by itself."""

    statistic: Statistic
    work: int = 1


def measured(name: str, before: Array, after: Array, labels: Array, seed: int) -> Metric:
    """``before`` and ``after`` [samples, ...] outputs, ``labels`` [samples, ...]. Raises ``NotApplicable``."""
    rows = fitted(family(name), before, after, labels)
    if name == "accuracy" and rows.is_one_a_sample and rows.task in ("binary", "multiclass"):
        return proportion_metric(name, *(each == 1 for each in right_rows(rows)))
    if name == "exact_match":
        if rows.task != "multilabel" and rows.is_one_a_sample:
            raise NotApplicable("several labels a sample, [N, T] or [N, L]; with one, it is accuracy")
        return proportion_metric(name, *all_right(rows))
    return _bootstrapped(name, rows, seed)


def drawn(name: str, rows: Fitted) -> Drawn:
    """How the draws of this metric are computed."""
    bare = base(name)
    if bare == "accuracy":
        return Drawn(right_share(rows))
    if bare in COUNTED:
        return Drawn(counted(rows, COUNTED[bare]))
    if bare in CURVES:
        return Drawn(area(rows, CURVES[bare]), ORDERED * rows.classes)
    if bare == "calibration_error":
        return Drawn(calibration_error(rows))
    if bare in RANKED:
        return Drawn(mean_of(*per_sample(rows, RANKED[bare], cutoff(name))))
    if bare == "hinge_loss":
        return Drawn(hinge_loss(rows))
    if bare in LABEL_RANKED:
        return Drawn(mean_of(*of_labels(rows, LABEL_RANKED[bare])))
    return _of_numbers(bare, rows) or Drawn(official.resampled(bare, rows), 0)


def _of_numbers(name: str, rows: Fitted) -> Drawn | None:
    if name in ERRORS:
        return Drawn(mean_of(*(ERRORS[name](each, rows.target) for each in rows.scores)))
    if name in FROM_MOMENTS:
        return Drawn(from_moments(rows, FROM_MOMENTS[name]), rows.target.shape[1])
    if name == "spearman_corrcoef":
        return Drawn(spearman_corrcoef(rows), ORDERED * rows.target.shape[1])
    if name == "kendall_rank_corrcoef":
        return Drawn(kendall_rank_corrcoef(rows), 0)
    if name == "weighted_mean_absolute_percentage_error":
        before, after = (np.abs(each - rows.target).sum(1) for each in rows.scores)
        return Drawn(ratio_of(before, after, np.abs(rows.target).sum(1)))
    return None


def _bootstrapped(name: str, rows: Fitted, seed: int) -> Metric:
    before, after = _values(name, rows)
    if not (np.isfinite(before) and np.isfinite(after)):
        raise NotApplicable("outputs and labels on which it is a number: here it is not finite")
    how = drawn(name, rows)
    draws = draws_for(len(rows.target), how.work) if how.work else FEWEST_DRAWS
    interval = paired_bootstrap(how.statistic, rows.samples, draws, seed)
    said = in_words(name, interval.low, interval.high, rows.samples) if interval else "too few samples for an interval"
    return Metric(
        name=name,
        before=before,
        after=after,
        delta=after - before,
        ci95=(interval.low, interval.high) if interval else None,
        p_value=interval.p_value if interval else None,
        note="; ".join([said, *_remarks(name, rows, interval.draws if interval else None)]),
    )


OWN = frozenset({*RANKED, *LABEL_RANKED, "accuracy", "kendall_rank_corrcoef"})
"""Computed here and compared with torchmetrics by the tests: it would take a call a sample, or samples squared."""


def _values(name: str, rows: Fitted) -> tuple[float, float]:
    """torchmetrics' values, where it has all samples at once in one go."""
    if base(name) in OWN:
        with np.errstate(all="ignore"):
            before, after = drawn(name, rows).statistic(np.ones((1, rows.samples)))
        return float(before[0]), float(after[0])
    return official.values(base(name), rows)


def _remarks(name: str, rows: Fitted, draws: int | None) -> list[str]:
    remarks = [_averaging(name, rows), _shape(rows)]
    if draws is not None:
        remarks.append(f"interval and p-value from a paired bootstrap of {draws} draws")
    if base(name) in COUNTED and 0 <= (changed := _changed(rows)) < FEW_CHANGES:
        remarks.append(f"only {changed} predictions changed, of which a bootstrap makes too narrow an interval")
    return [each for each in remarks if each]


def _changed(rows: Fitted) -> int:
    return int((rows.predicted[0] != rows.predicted[1]).sum())


def _averaging(name: str, rows: Fitted) -> str:
    if base(name) in WITH_CUTOFF and cutoff(name) is None:
        return f"all {rows.before.shape[1]} candidates count: {name}@10 would take the ten best"
    if family(name) == "regression" and rows.target.shape[1] > 1:
        return f"over all {rows.target.shape[1]} columns"
    if name in _MACRO and rows.task in ("multiclass", "multilabel"):
        return f"macro: the mean over {'classes' if rows.task == 'multiclass' else 'labels'}"
    return ""


_MACRO = (frozenset(COUNTED) - {"cohen_kappa", "matthews_corrcoef"}) | official.ONE_AGAINST_REST


def _shape(rows: Fitted) -> str:
    if rows.task == "multilabel":
        return "each label a yes or a no"
    return "" if rows.is_one_a_sample else f"{len(rows.target)} labels, whole samples drawn"
