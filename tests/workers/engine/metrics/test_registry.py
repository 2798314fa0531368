"""Each metric against torchmetrics: its value, and the values of its draws."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fewbit.contract import metrics as names
from tests.workers.engine.metrics.outputs import FORMS, Array, Outputs, regression, retrieval
from workers.engine.metrics.counts import COUNTED
from workers.engine.metrics.fitting import FittedRows, NotApplicable, fit
from workers.engine.metrics.ranks import CURVES
from workers.engine.metrics.registry import measure, resampler
from workers.engine.metrics.retrieval import RANKED
from workers.engine.metrics.sums import ERRORS, FROM_MOMENTS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torchmetrics.functional.classification as of_classes
    import torchmetrics.functional.regression as of_numbers
    import torchmetrics.functional.retrieval as of_rankings

RESAMPLED = sorted({*COUNTED, *CURVES, "calibration_error"})
OF_NUMBERS = sorted({*ERRORS, *FROM_MOMENTS, "spearman_corrcoef", "weighted_mean_absolute_percentage_error"})


def torchmetrics_class_metric(name: str, task: str, scores: Array, labels: Array) -> float | None:
    """As a user would call it: raw scores and labels, -100 ignored, every parameter left alone."""
    function = getattr(of_classes, name if name.startswith("multilabel_") else f"{task}_{name}", None)
    if function is None:
        return None
    given, target, more = torch.from_numpy(scores), torch.from_numpy(labels), {}
    if task == "multiclass":
        more = {"num_classes": scores.shape[-1]}
        if scores.ndim == 3:
            given, more["ignore_index"] = given.movedim(-1, 1), -100
        more |= {"average": "micro"} if name == "accuracy" else {}
    if task == "multilabel":
        more = {"num_labels": scores.shape[-1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(torch.as_tensor(function(given, target, **more)).mean())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", names.CLASSIFICATION)
def test_a_class_metric_is_torchmetrics(name: str, form: str) -> None:
    task = "multiclass" if form == "tokens" else form
    data = FORMS[form]()
    applies = not name.startswith("multilabel_") or task == "multilabel"
    applies = applies and (name != "exact_match" or form in ("tokens", "multilabel"))
    expected = torchmetrics_class_metric(name, task, data.before, data.labels) if applies else None
    if expected is None:
        with pytest.raises(NotApplicable):
            measure(name, data.before, data.after, data.labels, seed=0)
        return
    metric = measure(name, data.before, data.after, data.labels, seed=0)
    assert metric.before == pytest.approx(expected, abs=2e-6)
    after = torchmetrics_class_metric(name, task, data.after, data.labels)
    assert metric.after == pytest.approx(after, abs=2e-6)
    assert metric.delta == pytest.approx(metric.after - metric.before)
    assert metric.ci95 is not None
    assert metric.ci95[0] <= metric.delta <= metric.ci95[1]


@pytest.mark.parametrize("columns", [0, 3])
@pytest.mark.parametrize("name", names.REGRESSION)
def test_a_regression_metric_is_torchmetrics(name: str, columns: int) -> None:
    data = regression(columns=columns)
    if name == "cosine_similarity":
        sides = (torch.from_numpy(values.reshape(150, -1)).double() for values in (data.before, data.labels))
        expected = float(of_numbers.cosine_similarity(*sides, reduction="mean"))
    else:
        function: Callable[..., Any] = getattr(of_numbers, name)
        expected = float(function(torch.from_numpy(data.before).double(), torch.from_numpy(data.labels)).mean())
    metric = measure(name, data.before, data.after, data.labels, seed=0)
    assert metric.before == pytest.approx(expected, rel=1e-6)
    assert metric.p_value is not None
    assert ("3 columns" in metric.note) == bool(columns)


@pytest.mark.parametrize("cutoff", [None, 1, 4, 50])
@pytest.mark.parametrize("name", names.RETRIEVAL)
def test_a_retrieval_metric_is_the_mean_of_torchmetrics_over_samples(name: str, cutoff: int | None) -> None:
    if cutoff and name not in names.WITH_CUTOFF:
        assert not names.is_known(f"{name}@{cutoff}")
        return
    data, function = retrieval(), getattr(of_rankings, name)
    top = {"top_k": cutoff} if cutoff else {}
    pairs = zip(torch.from_numpy(data.before), torch.from_numpy(data.labels), strict=True)
    expected = np.mean([float(function(scores, labels, **top)) for scores, labels in pairs])
    metric = measure(f"{name}@{cutoff}" if cutoff else name, data.before, data.after, data.labels, seed=0)
    assert metric.before == pytest.approx(expected, abs=1e-6)


def test_candidates_of_equal_score_share_their_gain() -> None:
    scores, labels = np.array([[0.5, 0.5, 0.2, 0.5]], np.float32), np.array([[0, 0, 1, 3]])
    expected = of_rankings.retrieval_normalized_dcg(torch.from_numpy(scores[0]), torch.from_numpy(labels[0]))
    metric = measure("retrieval_normalized_dcg", scores, scores, labels, seed=0)
    assert metric.before == pytest.approx(float(expected), abs=1e-6)
    assert (metric.ci95, metric.p_value) == (None, None)  # of one sample


def random_draws(rows: FittedRows, random: np.random.Generator) -> Array:
    return random.multinomial(rows.samples, np.full(rows.samples, 1 / rows.samples), size=4).astype(np.float64)


def repeat_samples(data: Outputs, counts: Array) -> Outputs:
    chosen = np.repeat(np.arange(len(data.labels)), counts.astype(np.int64))
    return Outputs(data.before[chosen], data.after[chosen], data.labels[chosen])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", RESAMPLED)
def test_a_draw_of_a_class_metric_is_its_value_on_the_drawn_samples(name: str, form: str) -> None:
    data = FORMS[form]()
    try:
        measure(name, data.before, data.after, data.labels, seed=0)
    except NotApplicable:
        return
    assert_agrees_with_repeats(name, data)


@pytest.mark.parametrize("columns", [0, 3])
@pytest.mark.parametrize("name", OF_NUMBERS)
def test_a_draw_of_a_regression_metric_is_its_value_on_the_drawn_samples(name: str, columns: int) -> None:
    assert_agrees_with_repeats(name, regression(columns=columns))


@pytest.mark.parametrize("name", sorted(RANKED))
def test_a_draw_of_a_retrieval_metric_is_its_value_on_the_drawn_samples(name: str) -> None:
    assert_agrees_with_repeats(name, retrieval())


def assert_agrees_with_repeats(name: str, data: Outputs) -> None:
    rows = fit(names.family(name), data.before, data.after, data.labels)
    draws = random_draws(rows, np.random.default_rng(1))
    before, after = resampler(name, rows).statistic(draws)
    for index, counts in enumerate(draws):
        repeated_data = repeat_samples(data, counts)
        metric = measure(name, repeated_data.before, repeated_data.after, repeated_data.labels, seed=0)
        assert before[index] == pytest.approx(metric.before, abs=2e-5)
        assert after[index] == pytest.approx(metric.after, abs=2e-5)


def test_every_name_has_its_family_and_no_other_name_is_known() -> None:
    assert len(set(names.METRICS)) == len(names.METRICS)
    assert set(RANKED) == set(names.RETRIEVAL)
    assert {*ERRORS, *FROM_MOMENTS} < set(names.REGRESSION)
    assert {*COUNTED, *CURVES} < set(names.CLASSIFICATION)
    assert not any(map(names.is_known, ("bleu", "accuracy@1", "retrieval_recall@0", "r2_score@5", "retrieval_auroc@3")))
