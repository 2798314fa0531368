"""How well the candidates of a sample are ranked. Only the order of the scores counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from workers.engine.metrics.fitting import Array, FittedRows


@dataclass(frozen=True)
class Ranking:
    """The scores of candidates and their relevance, [samples, candidates], best score first. ``cutoff``: how many of
    them the metric looks at."""

    scores: Array
    relevance: Array
    cutoff: int

    @property
    def relevant(self) -> Array:
        return self.relevance > 0

    @property
    def hits(self) -> Array:
        """Whether each of the first ``cutoff`` candidates is relevant."""
        return self.relevant[:, : self.cutoff]


def ranking_scores(rows: FittedRows, formula: Callable[[Ranking], Array], cutoff: int | None) -> tuple[Array, Array]:
    """``formula`` for each sample's ranking by float and by int8, both [samples]; 0 where it is not defined, like in
    torchmetrics. Candidates of equal score keep their order."""
    results = []
    for scores in rows.scores:
        order = np.argsort(-scores, axis=1, kind="stable")
        ordered = np.take_along_axis(scores, order, 1).astype(np.float64)
        relevance = np.take_along_axis(rows.target, order, 1).astype(np.float64)
        with np.errstate(all="ignore"):
            results.append(np.nan_to_num(formula(Ranking(ordered, relevance, cutoff or scores.shape[1]))))
    return results[0], results[1]


def precision(ranking: Ranking) -> Array:
    return np.asarray(ranking.hits.sum(1) / ranking.cutoff)


def recall(ranking: Ranking) -> Array:
    return np.asarray(ranking.hits.sum(1) / ranking.relevant.sum(1))


def hit_rate(ranking: Ranking) -> Array:
    return np.asarray(ranking.hits.any(1).astype(np.float64))


def fall_out(ranking: Ranking) -> Array:
    return np.asarray((~ranking.hits).sum(1) / (~ranking.relevant).sum(1))


def reciprocal_rank(ranking: Ranking) -> Array:
    return np.asarray(ranking.hits.any(1) / (ranking.hits.argmax(1) + 1))


def average_precision(ranking: Ranking) -> Array:
    precisions = np.cumsum(ranking.hits, 1) / np.arange(1, ranking.hits.shape[1] + 1)
    return np.asarray((precisions * ranking.hits).sum(1) / ranking.hits.sum(1))


def r_precision(ranking: Ranking) -> Array:
    count = ranking.relevant.sum(1)
    first = np.arange(ranking.relevant.shape[1]) < count[:, None]
    return np.asarray((ranking.relevant & first).sum(1) / count)


def auroc(ranking: Ranking) -> Array:
    """Mann and Whitney's count of pairs in the right order, equal scores half."""
    count = ranking.relevant.sum(1)
    ranks = (stats.rankdata(ranking.scores, axis=1) * ranking.relevant).sum(1)
    return np.asarray((ranks - count * (count + 1) / 2) / (count * (~ranking.relevant).sum(1)))


def normalized_dcg(ranking: Ranking) -> Array:
    """Järvelin and Kekäläinen 2002, linear gain; candidates of equal score share theirs (McSherry and Najork 2008)."""
    discount = 1 / np.log2(np.arange(ranking.scores.shape[1]) + 2)
    discount[ranking.cutoff :] = 0
    ideal = -np.sort(-ranking.relevance, axis=1)
    return np.asarray((_tied_relevance(ranking) * discount).sum(1) / (ideal * discount).sum(1))


def _tied_relevance(ranking: Ranking) -> Array:
    """The relevance, averaged over candidates of equal score."""
    starts = np.diff(ranking.scores, axis=1, prepend=np.inf) != 0
    group = (np.cumsum(starts.ravel()) - 1).reshape(starts.shape)
    means = np.bincount(group.ravel(), ranking.relevance.ravel()) / np.bincount(group.ravel())
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
