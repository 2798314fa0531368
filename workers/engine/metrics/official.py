"""torchmetrics' own functions: the values that are reported, and the draws of metrics without a faster form."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from fewbit.contract.metrics import REGRESSION
from workers.engine.metrics.counts import COUNTED
from workers.engine.metrics.fitting import ONE_CLASS, Array, FittedRows, NotApplicable
from workers.engine.metrics.resampling import Statistic

ONE_AGAINST_REST = frozenset({"auroc", "average_precision", "eer", "logauc"})
"""torchmetrics gives classes without samples a score of 0 here; these are averaged over the classes that occur."""


def values(name: str, rows: FittedRows) -> tuple[float, float]:
    """The metric for float and for int8. Raises ``NotApplicable``."""
    compute = _function(name, rows.task)
    all_rows = np.arange(len(rows.target))
    return _value(name, compute, rows, 0, all_rows), _value(name, compute, rows, 1, all_rows)


def resampled_statistic(name: str, rows: FittedRows) -> Statistic:
    """The statistic that calls torchmetrics once per draw."""
    compute = _function(name, rows.task)
    places = np.arange(len(rows.target))

    def statistic(draws: Array) -> tuple[Array, Array]:
        drawn_rows = [np.repeat(places, draw[rows.sample].astype(np.int64)) for draw in draws]
        before, after = (
            np.array([_value(name, compute, rows, side, chosen) for chosen in drawn_rows]) for side in (0, 1)
        )
        return before, after

    return statistic


@cache
def _function(name: str, task: str) -> Callable[..., Any]:
    """Imported only here: torchmetrics takes seconds to load, and most jobs ask for accuracy alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional import classification, regression

    if name in REGRESSION:
        return getattr(regression, name)  # type: ignore[no-any-return]
    function = getattr(classification, f"{task}_{name}", None)
    if function is None:
        raise NotApplicable(ONE_CLASS)
    return function  # type: ignore[no-any-return]


def _value(name: str, compute: Callable[..., Any], rows: FittedRows, side: int, chosen: Array) -> float:
    chosen_from = rows.predicted if name in COUNTED else rows.scores
    given, target = torch.from_numpy(chosen_from[side][chosen]), torch.from_numpy(rows.target[chosen])
    if name in REGRESSION:
        return _regression_value(name, compute, given, target)
    settings: dict[str, Any] = {"validate_args": False}
    settings |= {"num_classes": rows.classes} if rows.task == "multiclass" else {}
    settings |= {"num_labels": rows.classes} if rows.task == "multilabel" else {}
    given = given if name in COUNTED else given.to(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without samples
        if name in ONE_AGAINST_REST and rows.task != "binary":
            settings |= {"average": None} if "average" in inspect.signature(compute).parameters else {}
            scores = torch.as_tensor(compute(given, target, **settings))
            return float(scores[_occurring_classes(rows, target)].double().mean())
        return float(compute(given, target, **settings))


def _regression_value(name: str, compute: Callable[..., Any], given: torch.Tensor, target: torch.Tensor) -> float:
    if name == "cosine_similarity":
        return float(compute(given, target, reduction="mean"))
    if target.shape[1] == 1:
        given, target = given[:, 0], target[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(compute(given, target).mean())


def _occurring_classes(rows: FittedRows, target: torch.Tensor) -> list[int]:
    if rows.task == "multiclass":
        return [int(label) for label in np.unique(target.numpy())]
    return [int(label) for label in np.flatnonzero(target.numpy().any(0))]
