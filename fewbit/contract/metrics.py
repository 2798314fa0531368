"""The metrics a job can ask for, by torchmetrics' names: what they read, and whether higher or lower is better.

A cut-off follows an ``@``: ``retrieval_recall@10`` looks at the ten best candidates of each sample.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal

from fewbit.contract.spec import JobSpec

Family = Literal["classification", "regression", "retrieval"]

CLASSIFICATION = (
    "accuracy", "auroc", "average_precision", "calibration_error", "cohen_kappa", "eer", "exact_match", "f1_score",
    "hamming_distance", "hinge_loss", "jaccard_index", "logauc", "matthews_corrcoef", "multilabel_coverage_error",
    "multilabel_ranking_average_precision", "multilabel_ranking_loss", "negative_predictive_value", "precision",
    "recall", "specificity",
)  # fmt: skip
REGRESSION = (
    "concordance_corrcoef", "cosine_similarity", "explained_variance", "kendall_rank_corrcoef", "log_cosh_error",
    "mean_absolute_error", "mean_absolute_percentage_error", "mean_squared_error", "mean_squared_log_error",
    "normalized_root_mean_squared_error", "pearson_corrcoef", "r2_score", "relative_squared_error", "spearman_corrcoef",
    "symmetric_mean_absolute_percentage_error", "weighted_mean_absolute_percentage_error",
)  # fmt: skip
WITH_CUTOFF = (
    "retrieval_average_precision", "retrieval_fall_out", "retrieval_hit_rate", "retrieval_normalized_dcg",
    "retrieval_precision", "retrieval_recall", "retrieval_reciprocal_rank",
)  # fmt: skip
RETRIEVAL = tuple(sorted((*WITH_CUTOFF, "retrieval_auroc", "retrieval_r_precision")))
METRICS: tuple[str, ...] = (*CLASSIFICATION, *REGRESSION, *RETRIEVAL)

LOWER_IS_BETTER = frozenset({
    "calibration_error", "eer", "hamming_distance", "hinge_loss", "multilabel_coverage_error",
    "multilabel_ranking_loss", "log_cosh_error", "mean_absolute_error", "mean_absolute_percentage_error",
    "mean_squared_error", "mean_squared_log_error", "normalized_root_mean_squared_error", "relative_squared_error",
    "symmetric_mean_absolute_percentage_error", "weighted_mean_absolute_percentage_error", "retrieval_fall_out",
})  # fmt: skip
NOT_A_SHARE = frozenset({
    "cohen_kappa", "hinge_loss", "logauc", "matthews_corrcoef", "multilabel_coverage_error", "multilabel_ranking_loss",
    *REGRESSION,
})  # fmt: skip
NEAREST = 5


def base(name: str) -> str:
    """The name without its cut-off."""
    return name.partition("@")[0]


def cutoff(name: str) -> int | None:
    """How many candidates the metric looks at; ``None`` for all."""
    number = name.partition("@")[2]
    return int(number) if number else None


def is_known(name: str) -> bool:
    """Whether the engine can measure this."""
    bare, at, number = name.partition("@")
    if not at:
        return bare in METRICS
    return bare in WITH_CUTOFF and number.isascii() and number.isdigit() and 0 < int(number) < 1_000_000


def near(name: str) -> tuple[str, ...]:
    """Known names that ``name`` may stand for: names that contain it, then names that look like it."""
    bare = base(name).lower().replace("-", "_")
    containing = [metric for metric in METRICS if bare and bare in metric]
    return tuple(dict.fromkeys([*containing, *get_close_matches(bare, METRICS, NEAREST, 0.5)]))[:NEAREST]


def family(name: str) -> Family:
    """Which outputs and labels the metric reads."""
    bare = base(name)
    if bare in CLASSIFICATION:
        return "classification"
    return "regression" if bare in REGRESSION else "retrieval"


def is_lower_better(name: str) -> bool:
    """Whether the metric counts errors, so that a rise is a loss."""
    return base(name) in LOWER_IS_BETTER


def is_share(name: str) -> bool:
    """Whether a person reads the metric in percent."""
    return base(name) not in NOT_A_SHARE


def wanted(spec: JobSpec) -> tuple[str, ...]:
    """The metrics that ``evaluation`` or a gate names, without duplicates."""
    evaluated = spec.evaluation.metrics if spec.evaluation else ()
    return tuple(dict.fromkeys((*evaluated, *(spec.gates.max_drop or {}))))
