"""Accuracy on labels: every metric that was asked for, every class, and the samples whose class changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewbit.contract.report import ClassAccuracy, Finding, Flip, Metric
from workers.engine.metrics.fitting import Array, FittedRows, NotApplicable, fit
from workers.engine.metrics.means import correct_rows
from workers.engine.metrics.registry import measure
from workers.engine.metrics.similarity import flips_between

MOST_CLASSES = 1000  # rows of ``classes``: beyond, those that changed least are left out


@dataclass(frozen=True)
class LabelMetrics:
    """Float and int8 outputs against labels. ``findings``: metrics that do not apply. ``flips`` is None where a sample
    has no single class."""

    metrics: tuple[Metric, ...] = ()
    findings: tuple[Finding, ...] = ()
    classes: tuple[ClassAccuracy, ...] = ()
    flips: tuple[Flip, ...] | None = None


def measure_on_labels(names: Sequence[str], before: Array, after: Array, labels: Array, seed: int) -> LabelMetrics:
    """The metrics of these names for ``before`` (float) and ``after`` (int8), [samples, ...] each."""
    metrics, findings = [], []
    for name in names:
        try:
            metrics.append(measure(name, before, after, labels, seed))
        except NotApplicable as needed:
            findings.append(metric_not_applicable(name, str(needed), before.shape, labels))
    rows = _fit_classes(before, after, labels) if metrics else None
    return LabelMetrics(
        metrics=tuple(metrics),
        findings=tuple(findings),
        classes=_classes(rows) if rows else (),
        flips=_flips(rows) if rows else None,
    )


def _fit_classes(before: Array, after: Array, labels: Array) -> FittedRows | None:
    try:
        return fit("classification", before, after, labels)
    except NotApplicable:
        return None


def _flips(rows: FittedRows) -> tuple[Flip, ...] | None:
    if not rows.is_one_per_sample or rows.task == "multilabel":
        return None
    return flips_between(*rows.predicted, rows.target)


def _classes(rows: FittedRows) -> tuple[ClassAccuracy, ...]:
    """The correct share of the rows of each class; for multilabel rows, of all samples for each label."""
    if rows.task == "multilabel":
        shares = [(predicted == rows.target).mean(0) for predicted in rows.predicted]
        labels = np.arange(rows.classes)
        sizes = np.full(rows.classes, rows.samples)
    else:
        labels, place, sizes = np.unique(rows.target, return_inverse=True, return_counts=True)
        shares = [np.bincount(place, correct, len(labels)) / sizes for correct in correct_rows(rows)]
    order = np.argsort(-np.abs(shares[1] - shares[0]), kind="stable")[:MOST_CLASSES]
    return tuple(
        ClassAccuracy(
            label=int(labels[index]),
            samples=int(sizes[index]),
            before=float(shares[0][index]),
            after=float(shares[1][index]),
            delta=float(shares[1][index] - shares[0][index]),
        )
        for index in order
    )


def metric_not_applicable(name: str, needed: str, shape: Sequence[int], labels: Array) -> Finding:
    return Finding(
        severity="warning",
        code="metric-not-applicable",
        message=f"{name} needs {needed}. The model's output has shape {list(shape)}, and labels "
        f"{list(labels.shape)} of {labels.dtype}.",
        remedy=f"Return what {name} reads as the first output, change `labels` in the dataset, or leave {name} out of "
        "evaluation.metrics.",
    )
