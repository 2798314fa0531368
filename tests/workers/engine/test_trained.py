"""Models that have learned something: int8 costs them next to nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fewbit.contract.report import Metric, Scheme
from tests.workers.engine.runs import EngineRun, run_engine
from tests.workers.engine.trained import TRAININGS, Trained

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export's own

LEAST_ACCURACY = {"perceptron": 0.95, "residual": 0.95, "lstm": 0.95, "transformer": 0.95, "reader": 0.8}
MOST_LOST = 0.005  # half a point of test accuracy
NOTHING = 0.001  # none of the 512 digits; three of the 3000 sentences, some of which any rounding at 50 dB turns over
CALIBRATION_SAMPLES = 256


@pytest.fixture(scope="module", params=TRAININGS)
def trained(request: pytest.FixtureRequest) -> Trained:
    return TRAININGS[request.param]()


def name_arrays(x: Tensor, labels: Tensor) -> dict[str, Any]:
    return {"x": x.numpy(), "labels": labels.numpy()}


def quantize_trained(trained: Trained, folder: Path, method: str) -> EngineRun:
    """One job; static ranges come from training data, accuracy from the samples held out."""
    data = trained.data
    chosen = slice(CALIBRATION_SAMPLES)
    calibration = name_arrays(data.x_train[chosen], data.labels_train[chosen]) if method == "static" else None
    evaluation = name_arrays(data.x_test, data.labels_test)
    return run_engine(
        folder, trained.module, (data.x_test[:8],), evaluation, threads=1, method=method,
        calibration=calibration,
    )  # fmt: skip


def accuracy_metric(run: EngineRun) -> Metric:
    assert run.report.accuracy is not None
    (metric,) = run.report.accuracy.metrics
    return metric


def count_lost(run: EngineRun, samples: int) -> int:
    """How many more samples int8 gets wrong, counted: a difference of two shares is not exactly three thousandths."""
    return round((accuracy_metric(run).before - accuracy_metric(run).after) * samples)


def activation_modes(run: EngineRun) -> set[str | None]:
    """How the activations of all layers that multiply are quantized; "float" among them when a layer is not: a float
    model loses nothing either."""
    rows = [row for row in run.report.layers if not row.op.startswith("aten.embedding")]
    return {activation_mode(row.scheme) if row.quantized else "float" for row in rows}


def activation_mode(scheme: Scheme | None) -> str | None:
    return scheme.activations.mode if scheme is not None and scheme.activations is not None else None


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_int8_loses_at_most_half_a_point_of_accuracy(method: str, trained: Trained, tmp_path: Path) -> None:
    run = quantize_trained(trained, tmp_path, method)
    assert {method} <= activation_modes(run) <= {method, None}  # of some kinds of layers only the weights are int8
    assert accuracy_metric(run).before - accuracy_metric(run).after <= MOST_LOST


def test_int8_weights_alone_lose_no_accuracy(trained: Trained, tmp_path: Path) -> None:
    run = quantize_trained(trained, tmp_path, "weight_only")
    assert activation_modes(run) == {None}
    assert count_lost(run, len(trained.data.labels_test)) <= NOTHING * len(trained.data.labels_test)


def test_each_model_has_learned_its_task(trained: Trained, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    least = LEAST_ACCURACY[request.node.callspec.params["trained"]]
    assert accuracy_metric(quantize_trained(trained, tmp_path, "dynamic")).before >= least
