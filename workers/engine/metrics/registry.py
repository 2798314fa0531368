"""All metrics by name: their values, how their draws are computed, and what a reader has to know about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewbit.contract.metrics import WITH_CUTOFF, base, cutoff, family
from fewbit.contract.report import Metric
from workers.engine.metrics import official
from workers.engine.metrics.counts import COUNTED, count_statistic
from workers.engine.metrics.fitting import Array, FittedRows, NotApplicable, fit
from workers.engine.metrics.labels import LABEL_RANKED, label_ranking_scores
from workers.engine.metrics.means import (
    all_correct,
    correct_rows,
    correct_share,
    hinge_loss,
    mean_statistic,
    ratio_statistic,
)
from workers.engine.metrics.paired import describe_interval, proportion_metric
from workers.engine.metrics.ranks import (
    CURVES,
    area_statistic,
    calibration_error,
    kendall_rank_corrcoef,
    spearman_corrcoef,
)
from workers.engine.metrics.resampling import FEWEST_DRAWS, Statistic, affordable_draws, paired_bootstrap
from workers.engine.metrics.retrieval import RANKED, ranking_scores
from workers.engine.metrics.sums import ERRORS, FROM_MOMENTS, moment_statistic

FEW_CHANGES = 10  # changed predictions below which a bootstrap interval is too narrow
ORDERED = 8  # a draw over sorted values costs as much as this many sums


@dataclass(frozen=True)
class Resampler:
    """How a metric is computed for many draws. ``work``: what a draw costs per sample; 0 if every draw is computed by
    itself."""

    statistic: Statistic
    work: int = 1


def measure(name: str, before: Array, after: Array, labels: Array, seed: int) -> Metric:
    """``before`` and ``after`` [samples, ...] outputs, ``labels`` [samples, ...]. Raises ``NotApplicable``."""
    rows = fit(family(name), before, after, labels)
    if name == "accuracy" and rows.is_one_per_sample and rows.task in ("binary", "multiclass"):
        return proportion_metric(name, *(shares == 1 for shares in correct_rows(rows)))
    if name == "exact_match":
        if rows.task != "multilabel" and rows.is_one_per_sample:
            raise NotApplicable("several labels per sample, [N, T] or [N, L]; with one, it is accuracy")
        return proportion_metric(name, *all_correct(rows))
    return _bootstrap_metric(name, rows, seed)


def resampler(name: str, rows: FittedRows) -> Resampler:
    """How the draws of this metric are computed."""
    bare = base(name)
    if bare == "accuracy":
        return Resampler(correct_share(rows))
    if bare in COUNTED:
        return Resampler(count_statistic(rows, COUNTED[bare]))
    if bare in CURVES:
        return Resampler(area_statistic(rows, CURVES[bare]), ORDERED * rows.classes)
    if bare == "calibration_error":
        return Resampler(calibration_error(rows))
    if bare in RANKED:
        return Resampler(mean_statistic(*ranking_scores(rows, RANKED[bare], cutoff(name))))
    if bare == "hinge_loss":
        return Resampler(hinge_loss(rows))
    if bare in LABEL_RANKED:
        return Resampler(mean_statistic(*label_ranking_scores(rows, LABEL_RANKED[bare])))
    return _regression_resampler(bare, rows) or Resampler(official.resampled_statistic(bare, rows), 0)


def _regression_resampler(name: str, rows: FittedRows) -> Resampler | None:
    if name in ERRORS:
        return Resampler(mean_statistic(*(ERRORS[name](scores, rows.target) for scores in rows.scores)))
    if name in FROM_MOMENTS:
        return Resampler(moment_statistic(rows, FROM_MOMENTS[name]), rows.target.shape[1])
    if name == "spearman_corrcoef":
        return Resampler(spearman_corrcoef(rows), ORDERED * rows.target.shape[1])
    if name == "kendall_rank_corrcoef":
        return Resampler(kendall_rank_corrcoef(rows), 0)
    if name == "weighted_mean_absolute_percentage_error":
        before, after = (np.abs(scores - rows.target).sum(1) for scores in rows.scores)
        return Resampler(ratio_statistic(before, after, np.abs(rows.target).sum(1)))
    return None


def _bootstrap_metric(name: str, rows: FittedRows, seed: int) -> Metric:
    before, after = _values(name, rows)
    if not (np.isfinite(before) and np.isfinite(after)):
        raise NotApplicable("outputs and labels on which it is finite")
    resampling = resampler(name, rows)
    draws = affordable_draws(len(rows.target), resampling.work) if resampling.work else FEWEST_DRAWS
    interval = paired_bootstrap(resampling.statistic, rows.samples, draws, seed)
    described = "too few samples for an interval"
    if interval is not None:
        described = describe_interval(name, interval.low, interval.high, rows.samples)
    return Metric(
        name=name,
        before=before,
        after=after,
        delta=after - before,
        ci95=(interval.low, interval.high) if interval else None,
        p_value=interval.p_value if interval else None,
        note="; ".join([described, *_remarks(name, rows, interval.draws if interval else None)]),
    )


OWN = frozenset({*RANKED, *LABEL_RANKED, "accuracy", "kendall_rank_corrcoef"})
"""Computed here, and compared with torchmetrics by the tests: torchmetrics would take one call per sample, or time that
grows with the square of the samples."""


def _values(name: str, rows: FittedRows) -> tuple[float, float]:
    """torchmetrics' values where it takes all samples in one call, else our own."""
    if base(name) in OWN:
        with np.errstate(all="ignore"):
            before, after = resampler(name, rows).statistic(np.ones((1, rows.samples)))
        return float(before[0]), float(after[0])
    return official.values(base(name), rows)


def _remarks(name: str, rows: FittedRows, draws: int | None) -> list[str]:
    remarks = [_averaging(name, rows), _shape(rows)]
    if draws is not None:
        remarks.append(f"interval and p-value from a paired bootstrap of {draws} draws")
    if base(name) in COUNTED and 0 <= (changed := _count_changed(rows)) < FEW_CHANGES:
        changes = "only 1 prediction" if changed == 1 else f"only {changed} predictions"
        remarks.append(f"{changes} changed, for which a bootstrap gives too narrow an interval")
    return [remark for remark in remarks if remark]


def _count_changed(rows: FittedRows) -> int:
    return int((rows.predicted[0] != rows.predicted[1]).sum())


def _averaging(name: str, rows: FittedRows) -> str:
    if base(name) in WITH_CUTOFF and cutoff(name) is None:
        return f"all {rows.before.shape[1]} candidates count: {name}@10 would take the ten best"
    if family(name) == "regression" and rows.target.shape[1] > 1:
        return f"over all {rows.target.shape[1]} columns"
    if name in _MACRO and rows.task in ("multiclass", "multilabel"):
        return f"macro: the mean over {'classes' if rows.task == 'multiclass' else 'labels'}"
    return ""


_MACRO = (frozenset(COUNTED) - {"cohen_kappa", "matthews_corrcoef"}) | official.ONE_AGAINST_REST


def _shape(rows: FittedRows) -> str:
    if rows.task == "multilabel":
        return "each label a yes or a no"
    return "" if rows.is_one_per_sample else f"{len(rows.target)} labels, whole samples drawn"
