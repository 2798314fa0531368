"""How well the candidates of each sample are ranked. Only the order of the scores counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from workers.engine.metrics.fitting import Array, FittedRows


@dataclass(frozen=True)
class Ranking:
    """[samples, candidates], best score first: the scores, and the relevance of each. ``cutoff``: how many of them the
    metric looks at."""

    scores: Array
    relevance: Array
    cutoff: int

    @property
    def relevant(self) -> Array:
        return self.relevance > 0

    @property
    def found(self) -> Array:
        """Of the first ``cutoff``, which are relevant."""
        return self.relevant[:, : self.cutoff]


def ranking_scores(rows: FittedRows, formula: Callable[[Ranking], Array], cutoff: int | None) -> tuple[Array, Array]:
    """``formula`` of each sample's ranking, [samples] each; 0 where it is not defined, as torchmetrics has it.
    Candidates of equal score keep their order."""
    values = []
    for scores in rows.scores:
        order = np.argsort(-scores, axis=1, kind="stable")
        ordered, relevance = (np.take_along_axis(each, order, 1).astype(np.float64) for each in (scores, rows.target))
        with np.errstate(all="ignore"):
            values.append(np.nan_to_num(formula(Ranking(ordered, relevance, cutoff or scores.shape[1]))))
    return values[0], values[1]


def precision(of: Ranking) -> Array:
    return np.asarray(of.found.sum(1) / of.cutoff)


def recall(of: Ranking) -> Array:
    return np.asarray(of.found.sum(1) / of.relevant.sum(1))


def hit_rate(of: Ranking) -> Array:
    return np.asarray(of.found.any(1).astype(np.float64))


def fall_out(of: Ranking) -> Array:
    return np.asarray((~of.found).sum(1) / (~of.relevant).sum(1))


def reciprocal_rank(of: Ranking) -> Array:
    return np.asarray(of.found.any(1) / (of.found.argmax(1) + 1))


def average_precision(of: Ranking) -> Array:
    precisions = np.cumsum(of.found, 1) / np.arange(1, of.found.shape[1] + 1)
    return np.asarray((precisions * of.found).sum(1) / of.found.sum(1))


def r_precision(of: Ranking) -> Array:
    count = of.relevant.sum(1)
    first = np.arange(of.relevant.shape[1]) < count[:, None]
    return np.asarray((of.relevant & first).sum(1) / count)


def auroc(of: Ranking) -> Array:
    """Mann and Whitney's count of pairs in the right order, equal scores half."""
    count = of.relevant.sum(1)
    ranks = (stats.rankdata(of.scores, axis=1) * of.relevant).sum(1)
    return np.asarray((ranks - count * (count + 1) / 2) / (count * (~of.relevant).sum(1)))


def normalized_dcg(of: Ranking) -> Array:
    """Järvelin and Kekäläinen 2002, linear gain; candidates of equal score share theirs (McSherry and Najork 2008)."""
    discount = 1 / np.log2(np.arange(of.scores.shape[1]) + 2)
    discount[of.cutoff :] = 0
    ideal = -np.sort(-of.relevance, axis=1)
    return np.asarray((_shared(of) * discount).sum(1) / (ideal * discount).sum(1))


def _shared(of: Ranking) -> Array:
    """The relevance, each the mean of those of equal score."""
    starts = np.diff(of.scores, axis=1, prepend=np.inf) != 0
    group = (np.cumsum(starts.ravel()) - 1).reshape(starts.shape)
    means = np.bincount(group.ravel(), of.relevance.ravel()) / np.bincount(group.ravel())
    return np.asarray(means[group])


RANKED: dict[str, Callable[[Ranking], Array]] = {
    "retrieval_precision": precision,
    "retrieval_recall": recall,
    "retrieval_hit_rate": hit_rate,
    "retrieval_fall_out": fall_out,
    "retrieval_reciprocal_rank": reciprocal_rank,
    "retrieval_average_precision": average_precision,
    "retrieval_r_precision": r_precision,
    "retrieval_auroc": auroc,
    "retrieval_normalized_dcg": normalized_dcg,
}
