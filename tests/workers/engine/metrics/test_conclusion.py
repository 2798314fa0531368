"""What a person reads about accuracy."""

import numpy as np

from fewbit.contract.report import Metric, OutputSimilarity
from workers.engine.metrics.accuracy import measure_on_labels
from workers.engine.metrics.conclusion import conclusion

CLOSE = OutputSimilarity(sqnr_db=31.24, cosine=0.9997, max_abs_error=0.1, top1_agreement=0.99)


def of(metric: Metric) -> str:
    return conclusion((metric,), CLOSE, (), (), 512, synthetic=False)


def metric(name: str, before: float, after: float, low: float, high: float) -> Metric:
    return Metric(name=name, before=before, after=after, delta=after - before, ci95=(low, high), p_value=0.1, note="")


def test_a_difference_that_may_be_chance_is_called_that() -> None:
    assert of(metric("accuracy", 0.981, 0.979, -0.006, 0.002)) == (
        "Accuracy went from 98.10 % to 97.90 %: not distinguishable from zero with 512 samples "
        "(95 % interval -0.60 to +0.20 points)."
    )


def test_a_rise_is_a_gain_of_a_score_and_a_loss_of_an_error() -> None:
    assert "a gain beyond chance" in of(metric("r2_score", 0.5, 0.6, 0.05, 0.15))
    assert "a loss beyond chance" in of(metric("mean_squared_error", 0.5, 0.6, 0.05, 0.15))
    assert "went from 0.5 to 0.6" in of(metric("mean_squared_error", 0.5, 0.6, 0.05, 0.15))


def test_made_up_inputs_are_no_accuracy() -> None:
    said = conclusion((), CLOSE, (), (), 64, synthetic=True)
    assert said.startswith("The inputs were made up")
    assert "not accuracy" in said
    assert "31.2 dB" in said


def test_a_class_that_loses_far_more_than_the_others_is_named() -> None:
    labels = np.repeat(np.arange(4), 50)
    after = labels.copy()
    after[100:120] = 3  # of class 2
    after[0] = 1
    found = measure_on_labels(("accuracy",), np.eye(4)[labels], np.eye(4)[after], labels, seed=0)
    assert (found.classes[0].label, found.classes[0].delta) == (2, -0.4)
    assert found.flips is not None
    assert len(found.flips) == 21
    said = conclusion(found.metrics, CLOSE, found.flips, found.classes, 200, synthetic=False)
    assert "a loss beyond chance with 200 samples" in said
    assert (
        "21 predictions changed. 1 label is affected more than the others: label 2 went from 100 % to 60.00 %" in said
    )


def test_classes_that_lose_alike_are_not_named() -> None:
    labels = np.repeat(np.arange(4), 50)
    after = labels.copy()
    after[[0, 51, 102, 153]] = [1, 2, 3, 0]
    found = measure_on_labels(("accuracy",), np.eye(4)[labels], np.eye(4)[after], labels, seed=0)
    said = conclusion(found.metrics, CLOSE, found.flips or (), found.classes, 200, synthetic=False)
    assert "affected" not in said
