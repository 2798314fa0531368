"""Sensitivity from a few passes against the truth: one evaluation with each layer quantized alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from fewbit.contract.spec import JobSpec, ReportParts
from fewbit.runtime.program import Program
from tests.workers.engine.runs import export, run_engine
from tests.workers.engine.trained import TRAININGS
from workers.engine.calibration.calibrate import calibrate
from workers.engine.calibration.conversion import Conversion
from workers.engine.data import Data, read_data
from workers.engine.graph.canonicalize import canonicalize
from workers.engine.graph.layers import find_layers
from workers.engine.graph.program import load, signature
from workers.engine.graph.run import ProgramRun
from workers.engine.measurement.sensitivity import Sensitivity, measure_sensitivity
from workers.engine.quantization.plan import plan
from workers.engine.quantization.quantize import quantize

pytestmark = [  # torch's own, about the models
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

MODELS = ("transformer", "residual", "lstm", "perceptron")
METHODS = ("dynamic", "static", "weight_only")


@dataclass(frozen=True)
class Job:
    program: Program
    data: Data

    def sensitivity(self, how: str, method: str) -> Sensitivity:
        layers, _ = find_layers(self.program)
        planned = plan(layers, JobSpec.model_validate({"model": "m", "method": method}), full_range=True)
        conversion = Conversion(self.program, layers, planned)
        conversion = calibrate(conversion, lambda: self.data, ReportParts(), ignore_progress)
        conversion = replace(conversion, quantized=quantize(conversion.planned, ignore_progress))
        sensitivity = measure_sensitivity(how, conversion, self.data, ignore_progress)
        assert sensitivity is not None
        return sensitivity


def ignore_progress(_: float) -> None:
    return None


def exported_job(folder: Path, module: nn.Module, x: torch.Tensor, samples: int = 512) -> Job:
    program = canonicalize(load(export(module, (x[:2],), folder / "model.pt2")))
    np.savez(folder / "evaluation.npz", x=x[:samples].numpy())
    return Job(program, read_data(folder / "evaluation.npz", signature(program), 32, None))


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    model = TRAININGS[request.param]()
    return exported_job(tmp_path_factory.mktemp(request.param), model.module, model.data.x_test)


@pytest.mark.parametrize("method", METHODS)
def test_layers_are_ranked_as_brute_force_ranks_them(trained: Job, method: str) -> None:
    estimate, truth = trained.sensitivity("estimate", method), trained.sensitivity("brute_force", method)
    names = list(truth.own)
    assert list(estimate.own) == names
    if len(names) > 2:
        assert _rank_correlation(estimate, truth, names) >= 0.9
    ratios = [estimate.own[name] / truth.own[name] for name in names]
    assert 0.5 < min(ratios) <= max(ratios) < 2


def test_any_number_of_layers_costs_at_most_five_passes(tmp_path: Path) -> None:
    for depth in (3, 60):
        folder = tmp_path / str(depth)
        folder.mkdir()
        blocks = [part for _ in range(depth) for part in (nn.Linear(16, 16), nn.Tanh())]
        job = exported_job(folder, nn.Sequential(*blocks), torch.randn(128, 16))
        found = job.sensitivity("estimate", "dynamic")
        assert found.summary.method == "estimate"
        assert len(found.own) == depth
        assert found.summary.passes <= 5


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 8, 15, 16, 33, 64, 100, 600])
@pytest.mark.parametrize("dynamic", [True, False], ids=["any batch", "fixed batch"])
def test_any_number_of_samples_costs_at_most_five_passes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, samples: int, dynamic: bool
) -> None:
    """Counted here, not believed: every forward and backward pass, times its samples."""
    module = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))
    program = canonicalize(load(export(module, (torch.randn(8, 16),), tmp_path / "model.pt2", dynamic=dynamic)))
    np.savez(tmp_path / "evaluation.npz", x=torch.randn(samples, 16).numpy())
    job = Job(program, read_data(tmp_path / "evaluation.npz", signature(program), 32, None))
    spent = count_passes(monkeypatch)
    found = job.sensitivity("estimate", "dynamic")
    whole = samples if dynamic else -(-samples // 8) * 8
    assert 1 < sum(spent) / whole <= 5
    assert found.summary.passes == pytest.approx(sum(spent) / whole, abs=0.01)
    assert set(found.own) == {"0", "2"}


def test_what_sparing_a_layer_gains_is_the_difference_it_makes(trained: Job) -> None:
    estimate, truth = trained.sensitivity("estimate", "weight_only"), trained.sensitivity("brute_force", "weight_only")
    most = max(truth.spared_db, key=truth.spared_db.__getitem__)
    assert abs(estimate.spared_db[most] - truth.spared_db[most]) < max(1.0, 0.5 * truth.spared_db[most])


def test_a_model_without_a_gradient_is_evaluated_layer_by_layer(tmp_path: Path) -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.b(self.a(x)) * 100).to(torch.int64).float()

    torch.manual_seed(0)
    report = run_engine(tmp_path, Rounded(), (torch.randn(2, 16),), {"x": torch.randn(64, 16).numpy()}).report
    assert report.sensitivity is not None
    assert report.sensitivity.method == "brute_force"
    assert report.sensitivity.passes <= 5
    assert all(row.error is not None and row.error.sensitivity for row in report.layers)


def test_every_part_can_be_left_out(tmp_path: Path) -> None:
    off = {name: False for name in ReportParts.model_fields if name != "sensitivity"} | {"sensitivity": "off"}
    report = run_engine(tmp_path, nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), (torch.randn(2, 16),),
                        {"x": torch.randn(64, 16).numpy()}, report=off).report  # fmt: skip
    assert report.sensitivity is None
    assert report.latency is None
    for row in report.layers:
        assert (row.weights, row.activations, row.saturation, row.error) == (None, None, None, None)
    assert report.accuracy is not None


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the samples of each pass. A forward pass with taps counts twice: it makes each layer's error, too."""
    spent: list[int] = []
    forward, backward = ProgramRun.outputs, torch.autograd.grad

    def outputs(run: ProgramRun, inputs: Sequence[torch.Tensor], grad: bool = False) -> list[Any]:
        spent.append(len(inputs[0]) * (2 if run.around else 1))
        return forward(run, inputs, grad)

    def grad(output: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        spent.append(len(output))
        return backward(output, *arguments, **keywords)

    monkeypatch.setattr(ProgramRun, "outputs", outputs)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    return spent


def _rank_correlation(one: Sensitivity, other: Sensitivity, names: Sequence[str]) -> float:
    return float(spearmanr([one.own[name] for name in names], [other.own[name] for name in names])[0])
