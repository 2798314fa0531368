"""Bringing the model's output and the labels into the form that a metric reads, if they fit it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fewbit.contract.metrics import Family

Array = np.ndarray[Any, Any]
Task = Literal["binary", "multiclass", "multilabel", "regression", "retrieval"]

IGNORED = -100  # the label of tokens that do not count, as torch's losses have it

ONE_CLASS = "one class per label: scores [N, C] with class numbers [N], or scores [N] with labels 0 and 1 [N]"


class NotApplicable(Exception):
    """The metric cannot be computed from this output and these labels. The message says what it needs."""


@dataclass(frozen=True)
class FittedRows:
    """Rows of outputs against rows of targets.

    ``before``, ``after`` [samples, ...]: the model's outputs; ``target`` [rows] or [rows, labels]; ``sample`` [rows]:
    the sample that a row belongs to. There are more rows than samples when tokens are labelled; rows of one sample are
    not independent, so they are drawn together. ``keep``: which tokens count; None for one row per sample.
    """

    task: Task
    samples: int
    sample: Array
    before: Array
    after: Array
    target: Array
    keep: Array | None = None

    @property
    def is_one_per_sample(self) -> bool:
        return self.keep is None

    @cached_property
    def scores(self) -> tuple[Array, Array]:
        """float64 scores, one row per target. Classification scores lie between 0 and 1: the float outputs decide for
        both whether that takes a sigmoid (or softmax), because rounding may take int8 outputs above 1."""
        before, after = (self._kept_rows(outputs).astype(np.float64) for outputs in (self.before, self.after))
        if self.task in ("regression", "retrieval"):
            return before, after
        if before.size and before.min() >= 0 and before.max() <= 1:
            return before, np.clip(after, 0, 1)
        squash = _softmax if self.task == "multiclass" else _sigmoid
        return squash(before), squash(after)

    @cached_property
    def predicted(self) -> tuple[Array, Array]:
        """Classes [rows], or 0 and 1 for each label [rows, labels]."""
        if self.task == "multiclass":
            before, after = self.before.argmax(-1), self.after.argmax(-1)
            return (before, after) if self.keep is None else (before[self.keep], after[self.keep])
        before, after = self.scores
        return (before > 0.5).astype(np.int64), (after > 0.5).astype(np.int64)

    @property
    def classes(self) -> int:
        """Columns of one-against-the-rest counts: classes, labels, or 1 for binary."""
        return 1 if self.task == "binary" else int(self.before.shape[-1])

    def _kept_rows(self, outputs: Array) -> Array:
        return np.asarray(outputs) if self.keep is None else np.asarray(outputs)[self.keep]


def fit(family: Family, before: Array, after: Array, labels: Array) -> FittedRows:
    """``before`` and ``after`` [samples, ...] float, ``labels`` [samples, ...]. Raises ``NotApplicable``."""
    if len(before) != len(labels):
        raise NotApplicable(f"one row of output per label; there are {len(labels)} labels and {len(before)} rows")
    rows = FittedRows("regression", len(labels), np.arange(len(labels)), before, after, labels)
    if family == "regression":
        return _fit_regression(rows)
    return _fit_retrieval(rows) if family == "retrieval" else _fit_classification(rows)


def _fit_regression(rows: FittedRows) -> FittedRows:
    before, after, target = (values.reshape(len(values), -1) for values in (rows.before, rows.after, rows.target))
    if before.shape != target.shape:
        raise NotApplicable("labels of the output's shape, [N] or [N, k] numbers")
    return replace(rows, before=before, after=after, target=target.astype(np.float64))


def _fit_retrieval(rows: FittedRows) -> FittedRows:
    if rows.before.ndim != 2 or rows.before.shape != rows.target.shape or not _is_integer(rows.target):
        raise NotApplicable("scores [N, C] of C candidates per sample, and their relevance as whole labels [N, C]")
    if rows.target.min(initial=0) < 0:
        raise NotApplicable("labels [N, C] of 0 for candidates that are not relevant, and 1 or more for those that are")
    return replace(rows, task="retrieval")


def _fit_classification(rows: FittedRows) -> FittedRows:
    if not _is_integer(rows.target):
        raise NotApplicable("whole numbers as labels")
    before, after, target = rows.before, rows.after, _drop_last_axis_of_one(rows.target)
    if before.ndim == target.ndim + 1 and before.shape[-1] > 1 and before.shape[:-1] == target.shape:
        return _fit_multiclass(rows, before, after, target)
    if before.ndim > 2 and before.shape[1] > 1 and (before.shape[0], *before.shape[2:]) == target.shape:
        return _fit_multiclass(rows, np.moveaxis(before, 1, -1), np.moveaxis(after, 1, -1), target)
    before, after = _drop_last_axis_of_one(before), _drop_last_axis_of_one(after)
    if before.shape != target.shape or before.ndim > 2 or not np.isin(target, (0, 1)).all():
        raise NotApplicable(
            "class scores [N, C] with class numbers [N]; [N, T, C] with class numbers [N, T], scores [N] with labels 0 "
            "and 1, or scores [N, L] with labels 0 and 1 [N, L]"
        )
    task: Task = "binary" if before.ndim == 1 else "multilabel"
    return replace(rows, task=task, before=before, after=after, target=target)


def _fit_multiclass(rows: FittedRows, before: Array, after: Array, target: Array) -> FittedRows:
    keep = target != IGNORED
    kept = target[keep]
    if not kept.size or kept.min() < 0 or kept.max() >= before.shape[-1]:
        raise NotApplicable(f"class numbers from 0 to {before.shape[-1] - 1}, as there are {before.shape[-1]} scores")
    one_per_sample = target.ndim == 1 and bool(keep.all())
    return replace(
        rows,
        task="multiclass",
        sample=np.nonzero(keep)[0],
        before=before,
        after=after,
        target=kept,
        keep=None if one_per_sample else keep,
    )


def _drop_last_axis_of_one(array: Array) -> Array:
    return array[..., 0] if array.ndim > 1 and array.shape[-1] == 1 else array


def _is_integer(array: Array) -> bool:
    return array.dtype.kind in "iub"


def _sigmoid(scores: Array) -> Array:
    from scipy.special import expit

    return np.asarray(expit(scores))


def _softmax(scores: Array) -> Array:
    from scipy.special import softmax

    return np.asarray(softmax(scores, axis=-1))
