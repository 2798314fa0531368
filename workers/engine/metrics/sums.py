"""Regression metrics that are functions of sums over samples: of errors, and of the first two moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from workers.engine.metrics.fitting import Array, FittedRows
from workers.engine.metrics.resampling import Statistic

SMALLEST = 1.17e-06  # torchmetrics' least divisor of relative errors


@dataclass(frozen=True)
class Moments:
    """Means over the drawn samples, [draws, k] for the ``k`` columns of the output: target, error and its square; the
    variances and the covariance of target and prediction. ``unbiased`` [draws, 1]: n / (n - 1)."""

    target: Array
    error: Array
    squared_error: Array
    target_variance: Array
    predicted_variance: Array
    covariance: Array
    unbiased: Array | float = 1.0


def explained_variance(moments: Moments) -> Array:
    return np.asarray((1 - (moments.squared_error - moments.error**2) / moments.target_variance).mean(1))


def r2_score(moments: Moments) -> Array:
    return np.asarray((1 - moments.squared_error / moments.target_variance).mean(1))


def relative_squared_error(moments: Moments) -> Array:
    return np.asarray((moments.squared_error / moments.target_variance).mean(1))


def pearson_corrcoef(moments: Moments) -> Array:
    return np.asarray((moments.covariance / np.sqrt(moments.target_variance * moments.predicted_variance)).mean(1))


def concordance_corrcoef(moments: Moments) -> Array:
    """Lin 1989, of the unbiased variances."""
    spread = moments.unbiased * (moments.target_variance + moments.predicted_variance) + moments.error**2
    return np.asarray((2 * moments.unbiased * moments.covariance / spread).mean(1))


def normalized_root_mean_squared_error(moments: Moments) -> Array:
    return np.asarray(np.sqrt(moments.squared_error.mean(1)) / moments.target.mean(1))


FROM_MOMENTS: dict[str, Callable[[Moments], Array]] = {
    "explained_variance": explained_variance,
    "r2_score": r2_score,
    "relative_squared_error": relative_squared_error,
    "pearson_corrcoef": pearson_corrcoef,
    "concordance_corrcoef": concordance_corrcoef,
    "normalized_root_mean_squared_error": normalized_root_mean_squared_error,
}


def moment_statistic(rows: FittedRows, formula: Callable[[Moments], Array]) -> Statistic:
    """The statistic that applies ``formula`` to the moments in each draw. Values are measured from the target's mean,
    or large ones would lose their digits."""
    origin = rows.target.mean(0)
    target = rows.target - origin
    squares, sides = target**2, [_products(scores - origin, target) for scores in rows.scores]

    def statistic(draws: Array) -> tuple[Array, Array]:
        total = draws.sum(1, keepdims=True)
        first, second = draws @ target / total, draws @ squares / total
        before, after = (
            _moments([draws @ products / total for products in side], first, second, origin) for side in sides
        )
        unbiased = total / (total - 1)
        return formula(replace(before, unbiased=unbiased)), formula(replace(after, unbiased=unbiased))

    return statistic


def _products(predicted: Array, target: Array) -> list[Array]:
    error = predicted - target
    return [predicted, error, error**2, predicted**2, predicted * target]


def _moments(means: list[Array], target: Array, target_square: Array, origin: Array) -> Moments:
    predicted, error, squared_error, predicted_square, product = means
    return Moments(
        target=target + origin,
        error=error,
        squared_error=squared_error,
        target_variance=target_square - target**2,
        predicted_variance=predicted_square - predicted**2,
        covariance=product - predicted * target,
    )


Error = Callable[[Array, Array], Array]
"""(prediction, target) [samples, k] -> the error of every sample [samples]"""


def _squared_error(predicted: Array, target: Array) -> Array:
    return np.asarray(((predicted - target) ** 2).mean(1))


def _absolute_error(predicted: Array, target: Array) -> Array:
    return np.asarray(np.abs(predicted - target).mean(1))


def _percentage_error(predicted: Array, target: Array) -> Array:
    return np.asarray((np.abs(predicted - target) / np.maximum(np.abs(target), SMALLEST)).mean(1))


def _symmetric_percentage_error(predicted: Array, target: Array) -> Array:
    size = np.maximum(np.abs(target) + np.abs(predicted), SMALLEST)
    return np.asarray((2 * np.abs(predicted - target) / size).mean(1))


def _squared_log_error(predicted: Array, target: Array) -> Array:
    return np.asarray(((np.log1p(predicted) - np.log1p(target)) ** 2).mean(1))


def _log_cosh_error(predicted: Array, target: Array) -> Array:
    error = predicted - target
    return np.asarray((np.logaddexp(error, -error) - np.log(2)).mean(1))


def _cosine_similarity(predicted: Array, target: Array) -> Array:
    lengths = np.linalg.norm(predicted, axis=1) * np.linalg.norm(target, axis=1)
    return np.asarray((predicted * target).sum(1) / lengths)


ERRORS: dict[str, Error] = {
    "mean_squared_error": _squared_error,
    "mean_absolute_error": _absolute_error,
    "mean_absolute_percentage_error": _percentage_error,
    "symmetric_mean_absolute_percentage_error": _symmetric_percentage_error,
    "mean_squared_log_error": _squared_log_error,
    "log_cosh_error": _log_cosh_error,
    "cosine_similarity": _cosine_similarity,
}
