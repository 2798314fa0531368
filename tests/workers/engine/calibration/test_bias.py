"""Bias correction: what a quantized layer is off on average, its bias takes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewbit import JobSpec
from fewbit.contract.report import OutputSimilarity
from fewbit.contract.spec import ReportParts
from fewbit.runtime.program import Program
from tests.workers.engine.models import CalledTwice, Functional, Mixed, Structured, mlp
from tests.workers.engine.runs import EngineRun, export, load_exported, run_engine
from tests.workers.engine.trained import Residual, Trained, digits, train
from workers.engine.calibration.bias import correct_biases, mean_errors
from workers.engine.calibration.calibrate import calibrate
from workers.engine.calibration.conversion import Conversion
from workers.engine.data import Batch, Data
from workers.engine.graph.layers import find_layers
from workers.engine.graph.program import load
from workers.engine.measurement.float_pass import program_outputs
from workers.engine.quantization.plan import plan
from workers.engine.quantization.quantize import quantize
from workers.engine.quantization.reference import Reference, build_reference

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export's own
aten = torch.ops.aten

INT4 = {"method": "weight_only", "weights": {"dtype": "int4", "granularity": "per_channel"}}
CALIBRATION_SAMPLES = 128


class Quantized:
    """A program, quantized twice: with its own biases, and with corrected ones."""

    def __init__(self, program: Program, x: tuple[Tensor, ...], **spec: Any) -> None:
        self.data = make_data(*x)
        layers, _ = find_layers(program)
        planned = plan(layers, JobSpec.model_validate({"model": "m", **spec}), full_range=False)
        conversion = calibrate(Conversion(program, layers, planned), self.read_data, ReportParts(), ignore_progress)
        self.conversion = replace(conversion, quantized=quantize(planned, ignore_progress))
        self.corrected = correct_biases(self.conversion, True, self.read_data, ignore_progress)
        self.plain_reference = self.reference(self.conversion)
        self.corrected_reference = self.reference(self.corrected)

    def read_data(self) -> Data:
        return self.data

    def reference(self, conversion: Conversion) -> Reference:
        layers = self.conversion.layers
        return build_reference(conversion.program, layers, conversion.quantized, conversion.ranges)

    def names_of_corrected(self) -> set[str]:
        pairs = zip(self.conversion.quantized, self.corrected.quantized, strict=True)
        return {before.layer.name for before, after in pairs if before.layer is not after.layer}

    def output_error(self, reference: Reference) -> Tensor:
        """Float output minus quantized output, on the calibration data."""
        batch = Batch(tuple(map(torch.from_numpy, self.data.arrays)), 0, self.data.samples)
        expected, actual = (
            torch.from_numpy(program_outputs(program, batch))
            for program in (self.conversion.program, reference.program)
        )
        return expected - actual


def ignore_progress(_: float) -> None:
    return None


def make_data(*x: Tensor) -> Data:
    arrays, dtypes = tuple(tensor.numpy() for tensor in x), tuple(tensor.dtype for tensor in x)
    return Data(arrays, dtypes, None, len(x[0]), 16, "real", False)


@pytest.fixture(scope="module")
def residual() -> Trained:
    return train(Residual, digits(), epochs=10)


@pytest.fixture(scope="module")
def perceptron() -> Trained:
    return train(digits_perceptron, digits(), epochs=15)


def digits_perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), mlp())


def run(folder: Path, trained: Trained, **spec: Any) -> EngineRun:
    """Corrected on digits that the model was trained on, judged on others."""
    folder.mkdir()
    data = trained.data
    return run_engine(
        folder, trained.module, (data.x_test[:8],), {"x": data.x_test.numpy()}, threads=1,
        calibration={"x": data.x_train[:CALIBRATION_SAMPLES].numpy()}, **spec,
    )  # fmt: skip


def output_similarity(run: EngineRun) -> OutputSimilarity:
    assert run.report.accuracy is not None
    return run.report.accuracy.output


@pytest.mark.parametrize("method", ["dynamic", "static", "weight_only"])
def test_a_trained_model_comes_no_farther_from_float(method: str, residual: Trained, tmp_path: Path) -> None:
    plain = output_similarity(run(tmp_path / "plain", residual, method=method))
    better = output_similarity(run(tmp_path / "corrected", residual, method=method, bias_correction=True))
    assert better.sqnr_db >= plain.sqnr_db - 0.1


@pytest.mark.parametrize("trained", ["residual", "perceptron"])
def test_int4_weights_gain_visibly(trained: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(trained)
    plain = output_similarity(run(tmp_path / "plain", model, **INT4))
    better = output_similarity(run(tmp_path / "corrected", model, bias_correction=True, **INT4))
    assert better.sqnr_db >= plain.sqnr_db + 0.5


@pytest.mark.parametrize("method", ["dynamic", "static", "weight_only"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_single_layer_has_no_mean_error_left(method: str, bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.rand(64, 32) + 0.5  # a mean other than 0, as behind a relu
    quantized = Quantized(
        load_exported(nn.Sequential(nn.Linear(32, 16, bias=bias)), (x,), tmp_path), (x,), method=method
    )
    assert float(quantized.output_error(quantized.corrected_reference).flatten(0, -2).mean(0).abs().max()) < 1e-5
    assert float(quantized.output_error(quantized.plain_reference).flatten(0, -2).mean(0).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(2)), torch.rand(32, 3, 6, 6)),
        (nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.Flatten(2)), torch.rand(32, 3, 6, 6)),
        (nn.Sequential(nn.Conv1d(3, 8, 3, padding="same")), torch.rand(32, 3, 9)),
    ],
    ids=["conv2d", "conv_transpose2d", "conv1d-same"],
)
def test_a_convolutions_channels_are_corrected_over_all_positions(module: nn.Module, x: Tensor, tmp_path: Path) -> None:
    quantized = Quantized(
        load_exported(module, (x,), tmp_path), (x,), method="weight_only", weights={"granularity": "per_tensor"}
    )
    assert float(quantized.output_error(quantized.corrected_reference).mean((0, 2)).abs().max()) < 1e-6
    assert float(quantized.output_error(quantized.plain_reference).mean((0, 2)).abs().max()) > 1e-5


@pytest.mark.parametrize(
    ("module", "x", "names"),
    [
        (Functional(), (torch.rand(32, 8),), {"weight", "right", "table"}),
        (CalledTwice(), (torch.rand(32, 8),), {"shared"}),
        (Structured(), (torch.rand(32, 8), torch.rand(32, 8) > 0.2), {"a", "b"}),
    ],
    ids=["functional", "called-twice", "two-inputs"],
)
@pytest.mark.parametrize("decompose", [False, True])
def test_every_form_that_has_a_place_for_a_bias_is_corrected(
    module: nn.Module, x: tuple[Tensor, ...], names: set[str], decompose: bool, tmp_path: Path
) -> None:
    program = load(export(module, x, tmp_path / "model.pt2", decompose=decompose))
    quantized = Quantized(program, x, method="weight_only")
    assert quantized.names_of_corrected() == names
    corrected, plain = quantized.corrected_reference.record.layers, quantized.plain_reference.record.layers
    assert [layer.name for layer in corrected] == [layer.name for layer in plain]
    torch.export.save(quantized.corrected_reference.program.exported, tmp_path / "corrected.pt2")
    load(tmp_path / "corrected.pt2")


def test_layers_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    x = torch.randint(0, 16, (32, 6))
    quantized = Quantized(load_exported(Mixed(), (x,), tmp_path), (x,), method="weight_only")
    assert quantized.names_of_corrected() == {"conv", "head"}


def test_the_float_program_is_not_changed(tmp_path: Path) -> None:
    x = torch.rand(32, 64)
    quantized = Quantized(load_exported(mlp(), (x,), tmp_path), (x,))
    again = load(tmp_path / "model.pt2")
    for name, value in again.exported.state_dict.items():
        assert torch.equal(value, quantized.conversion.program.exported.state_dict[name])


def test_a_bias_that_two_layers_share_is_corrected_for_each(tmp_path: Path) -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.bias = first.bias
    x = torch.rand(64, 8)
    quantized = Quantized(load_exported(nn.Sequential(first, second), (x,), tmp_path), (x,), method="weight_only")
    biases = [use.bias for entry in quantized.corrected.quantized for use in entry.layer.uses]
    assert len(set(biases)) == 2


def test_a_chain_of_integers_stays_one(perceptron: Trained, tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", perceptron, method="static")
    better = run(tmp_path / "corrected", perceptron, method="static", bias_correction=True)
    executed = [row.executed for row in plain.report.layers]
    assert [row.executed for row in better.report.layers] == executed
    assert any("linear_relu" in (kernel or "") for kernel in executed)


def test_unless_asked_for_nothing_is_read(tmp_path: Path) -> None:
    x = torch.rand(32, 64)
    quantized = Quantized(load_exported(mlp(), (x,), tmp_path), (x,))

    def unread() -> Data:
        raise AssertionError("data was read")

    unchanged = correct_biases(quantized.conversion, False, unread, ignore_progress)
    assert unchanged.program is quantized.conversion.program


def test_an_output_that_is_not_finite_is_not_corrected(tmp_path: Path) -> None:
    x = torch.rand(32, 64)
    quantized = Quantized(load_exported(mlp(), (x,), tmp_path), (x,))
    x[3, 3] = float("inf")
    conversion = quantized.conversion
    assert mean_errors(conversion.program, conversion.quantized, conversion.ranges, make_data(x), ignore_progress) == {}
