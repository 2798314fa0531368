"""Ranking the labels of a sample: those that hold should come first (Tsoumakas et al. 2010)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from workers.engine.metrics.fitting import Array, FittedRows, NotApplicable

Formula = Callable[[Array, Array], Array]
"""(scores, whether each label holds) [samples, labels] -> [samples]"""


def coverage_error(scores: Array, holds: Array) -> Array:
    """How far down the list one must go to have all labels that hold."""
    least = np.where(holds, scores, np.inf).min(1, keepdims=True)
    return np.asarray((scores >= least).sum(1))


def ranking_average_precision(scores: Array, holds: Array) -> Array:
    """The mean over labels that hold: among labels ranked at least as high, the share that holds. 1 where all or none
    hold."""
    rank = stats.rankdata(-scores, "max", axis=1)
    rank_among_holding = stats.rankdata(np.where(holds, -scores, np.inf), "max", axis=1)
    mean = (rank_among_holding / rank * holds).sum(1) / holds.sum(1)
    return np.where(holds.all(1) | ~holds.any(1), 1.0, mean)


def ranking_loss(scores: Array, holds: Array) -> Array:
    """The share of pairs in the wrong order; 0 where all or none hold."""
    count = holds.sum(1)
    down = scores.shape[1] - scores.argsort(1, kind="stable").argsort(1, kind="stable")
    wrong = (down * holds).sum(1) - count * (count + 1) / 2
    return np.where(holds.all(1) | ~holds.any(1), 0.0, wrong / (count * (scores.shape[1] - count)))


LABEL_RANKED: dict[str, Formula] = {
    "multilabel_coverage_error": coverage_error,
    "multilabel_ranking_average_precision": ranking_average_precision,
    "multilabel_ranking_loss": ranking_loss,
}


def label_ranking_scores(rows: FittedRows, formula: Formula) -> tuple[Array, Array]:
    """``formula`` for float and for int8, both [samples]. Raises ``NotApplicable``."""
    if rows.task != "multilabel":
        raise NotApplicable("scores [N, L] with labels 0 and 1 [N, L]")
    with np.errstate(all="ignore"):
        before, after = (formula(scores.astype(np.float32), rows.target == 1) for scores in rows.scores)
    return before, after
