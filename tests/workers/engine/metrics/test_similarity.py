"""What is said about accuracy, held against the definitions."""

import numpy as np
import pytest

from workers.engine.metrics.fitting import NotApplicable
from workers.engine.metrics.paired import mcnemar, paired_interval
from workers.engine.metrics.registry import measure
from workers.engine.metrics.similarity import Comparison, flips_between


def compare(before: np.ndarray, after: np.ndarray) -> Comparison:
    comparison = Comparison()
    for start in range(0, len(before), 7):
        comparison.add(before[start : start + 7], after[start : start + 7])
    return comparison


def test_the_batches_add_up_to_the_whole() -> None:
    random = np.random.default_rng(0)
    before = random.normal(size=(50, 5))
    after = before + random.normal(size=(50, 5)) * 0.01
    whole = 10 * np.log10(np.square(before).sum() / np.square(before - after).sum())
    similarity = compare(before, after).similarity
    assert similarity.sqnr_db == pytest.approx(whole, abs=0.01)
    assert similarity.max_abs_error == pytest.approx(np.abs(before - after).max())
    assert similarity.top1_agreement == (before.argmax(1) == after.argmax(1)).mean()


def test_equal_outputs_and_non_finite_outputs_stay_finite_numbers() -> None:
    rows = np.ones((4, 3))
    assert compare(rows, rows).similarity.sqnr_db == 150
    assert compare(rows, np.full((4, 3), np.nan)).similarity.sqnr_db == -150


def test_flips_are_the_samples_whose_class_changed() -> None:
    before = np.eye(4)
    after = before[[0, 1, 3, 3]]
    assert [flip.sample for flip in compare(before, after).flips] == [2]
    flips = flips_between(before.argmax(1), after.argmax(1), np.array([0, 1, 2, 3]))
    assert [(flip.sample, flip.before, flip.after, flip.label) for flip in flips] == [(2, 2, 3, 2)]


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 * 0.5**5)


def test_the_interval_covers_a_known_difference_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    losing, gaining, samples = 0.03, 0.01, 400
    draws = random.multinomial(samples, [losing, gaining, 1 - losing - gaining], size=4000)
    covered = [low <= gaining - losing <= high for low, high in (paired_interval(a, b, samples) for a, b, _ in draws)]
    assert 0.93 <= np.mean(covered) <= 0.98


def test_labels_that_do_not_fit_the_output_give_no_metric() -> None:
    with pytest.raises(NotApplicable, match="3 labels and 4 rows"):
        measure("accuracy", np.eye(4), np.eye(4), np.zeros(3, int), seed=0)


def test_no_change_is_said_to_be_indistinguishable_from_zero() -> None:
    metric = measure("accuracy", np.eye(4), np.eye(4), np.arange(4), seed=0)
    assert metric.delta == 0
    assert metric.ci95 is not None
    assert metric.ci95[0] < 0 < metric.ci95[1]
    assert metric.note == "not distinguishable from zero with 4 samples"
