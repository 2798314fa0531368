"""What the labels say: each metric that was asked for, each class, and the samples that flipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewbit.contract.report import ClassAccuracy, Finding, Flip, Metric
from workers.engine.metrics.fitting import Array, Fitted, NotApplicable, fitted
from workers.engine.metrics.means import right_rows
from workers.engine.metrics.registry import measured
from workers.engine.metrics.similarity import flips_between

MOST_CLASSES = 1000  # rows of ``classes``: those that changed least are left out beyond


@dataclass(frozen=True)
class Labelled:
    """Outputs of float and of int8, [samples, ...] each, against labels."""

    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...]
    classes: tuple[ClassAccuracy, ...]
    flips: tuple[Flip, ...] | None


def labelled(names: Sequence[str], before: Array, after: Array, labels: Array, seed: int) -> Labelled:
    """``names`` measured; a finding for each that cannot be. ``flips`` is None where a sample has no one class."""
    metrics, findings = [], []
    for name in names:
        try:
            metrics.append(measured(name, before, after, labels, seed))
        except NotApplicable as needed:
            findings.append(metric_not_applicable(name, str(needed), before.shape, labels))
    rows = _classified(before, after, labels) if metrics else None
    return Labelled(
        metrics=tuple(metrics),
        findings=tuple(findings),
        classes=_classes(rows) if rows else (),
        flips=_flips(rows) if rows else None,
    )


def _classified(before: Array, after: Array, labels: Array) -> Fitted | None:
    try:
        return fitted("classification", before, after, labels)
    except NotApplicable:
        return None


def _flips(rows: Fitted) -> tuple[Flip, ...] | None:
    if not rows.is_one_a_sample or rows.task == "multilabel":
        return None
    return flips_between(*rows.predicted, rows.target)


def _classes(rows: Fitted) -> tuple[ClassAccuracy, ...]:
    """The share that is right of each class's rows, or of all samples for each of several labels."""
    if rows.task == "multilabel":
        shares = [(predicted == rows.target).mean(0) for predicted in rows.predicted]
        found = np.arange(rows.classes)
        sizes = np.full(rows.classes, rows.samples)
    else:
        found, place, sizes = np.unique(rows.target, return_inverse=True, return_counts=True)
        shares = [np.bincount(place, right, len(found)) / sizes for right in right_rows(rows)]
    order = np.argsort(-np.abs(shares[1] - shares[0]), kind="stable")[:MOST_CLASSES]
    return tuple(
        ClassAccuracy(
            label=int(found[each]),
            samples=int(sizes[each]),
            before=float(shares[0][each]),
            after=float(shares[1][each]),
            delta=float(shares[1][each] - shares[0][each]),
        )
        for each in order
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
