"""What is not right is not delivered, and what is right still is: on a finished job whose files were changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewbit import Report
from fewbit.contract.report import Finding
from fewbit.runtime.script import Call
from tests.workers.engine.runs import EngineRun, run_engine
from workers.engine.artifacts.kinds import Kind, load_torchscript
from workers.engine.artifacts.torchscript import save_torchscript
from workers.engine.data import Batch
from workers.engine.measurement.parting import parting_layer
from workers.engine.pipeline import verify
from workers.engine.quantization.reference import Reference
from workers.errors import EngineError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export's own, about the models

KINDS = ["torchscript", "pt2", "safetensors"]


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.fixture
def run(tmp_path: Path) -> EngineRun:
    torch.manual_seed(0)
    rows = {"x": torch.randn(64, 16).numpy()}
    return run_engine(tmp_path, Perceptron(), (torch.randn(2, 16),), rows, artifacts=KINDS, report={"latency": False})


def judged_again(run: EngineRun) -> Report:
    verify(run.folder, lambda stage, share: None)
    return Report.model_validate_json((run.folder / "report.json").read_bytes())


def found(report: Report, code: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.code == code]


def negate(run: EngineRun) -> None:
    """The TorchScript artifact gives the opposite."""

    class Opposite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.jit.load(run.artifact("model.ts.pt"))

        def forward(self, x: Tensor) -> Tensor:
            return -self.inner(x)

    torch.jit.script(Opposite()).save(run.artifact("model.ts.pt"))


def test_every_documented_way_to_load_a_file_is_measured(run: EngineRun) -> None:
    loaders = {artifact.kind: set(artifact.loaders) for artifact in run.report.artifacts}
    assert loaders == {
        "torchscript": {"torch.jit.load"},
        "pt2": {"torch.export.load", "fewbit.runtime.load"},
        "safetensors": set(),
    }
    for artifact in run.report.artifacts:
        for measured in artifact.loaders.values():
            assert measured.sqnr_db > 35
            assert 0 < measured.max_abs_error < 0.1


def test_a_kind_that_answers_otherwise_is_not_delivered_and_the_others_are(run: EngineRun) -> None:
    negate(run)
    report = judged_again(run)
    assert [artifact.kind for artifact in report.artifacts] == ["pt2", "safetensors"]
    assert not run.artifact("model.ts.pt").exists()
    assert run.artifact("model.pt2").exists()
    (reason,) = found(report, "artifact-not-written")
    assert reason.message.startswith("model.ts.pt is not delivered: model.ts.pt is -")
    assert found(report, "kinds-disagree")
    assert report.verdict == "warn"
    assert report.accuracy is not None
    assert report.accuracy.artifact == "model.pt2"


def test_a_file_that_does_not_load_is_not_delivered(run: EngineRun) -> None:
    run.artifact("model.pt2").write_bytes(b"PK\x03\x04 and nothing else")
    report = judged_again(run)
    assert [artifact.kind for artifact in report.artifacts] == ["torchscript", "safetensors"]
    (reason,) = found(report, "artifact-not-written")
    assert "does not load by torch.export.load" in reason.message
    assert not found(report, "kinds-disagree")


def test_the_job_fails_when_nothing_is_left(run: EngineRun) -> None:
    for name in ("model.ts.pt", "model.pt2", "model.safetensors"):
        run.artifact(name).write_bytes(b"nothing")
    with pytest.raises(EngineError, match=r"model\.ts\.pt does not load"):
        judged_again(run)


@pytest.mark.parametrize("shift", [1.0, 100.0])
def test_artifacts_are_held_against_the_upload_not_against_what_the_engine_took_for_it(
    run: EngineRun, shift: float
) -> None:
    floats = np.load(run.folder / "float.npy")
    np.save(run.folder / "float.npy", floats + shift)
    np.save(run.folder / "expected.npy", np.load(run.folder / "expected.npy") + shift)
    report = judged_again(run)
    assert np.allclose(np.load(run.folder / "float.npy"), floats, atol=1e-5)
    before, after = ({file.name: file.output for file in told.artifacts} for told in (run.report, report))
    assert after == before


def test_a_repaired_model_is_held_against_the_upload_with_the_same_repair(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Perceptron()
    model.second.weight.data[1, 1] = float("nan")
    rows, repair = {"x": torch.randn(64, 16).numpy()}, {"non_finite": "repair"}
    run = run_engine(
        tmp_path, model, (torch.randn(2, 16),), rows, artifacts=KINDS, report={"latency": False}, weights=repair
    )
    model.second.weight.data[1, 1] = 0.0
    floats = model(torch.from_numpy(rows["x"])).detach().numpy()
    assert np.allclose(np.load(run.folder / "float.npy"), floats, atol=1e-5)
    assert {artifact.kind for artifact in run.report.artifacts} == set(KINDS)
    np.save(run.folder / "float.npy", floats + 1)
    np.save(run.folder / "expected.npy", np.load(run.folder / "expected.npy") + 1)
    report = judged_again(run)
    assert np.allclose(np.load(run.folder / "float.npy"), floats, atol=1e-5)
    before, after = ({file.name: file.output for file in told.artifacts} for told in (run.report, report))
    assert after == before


def save_with_second_doubled(reference: Reference, path: Path) -> tuple[Call, ...]:
    layers = tuple(
        layer.model_copy(update={"alpha": 2.0}) if layer.name == "second" else layer
        for layer in reference.record.layers
    )
    return save_torchscript(Reference(reference.program, reference.record.model_copy(update={"layers": layers})), path)


def test_the_layer_where_an_artifact_parts_is_named(run: EngineRun) -> None:
    wrong = Kind("wrong", "wrong.ts.pt", save_with_second_doubled, {"torch.jit.load": load_torchscript})
    right = Kind("right", "right.ts.pt", save_torchscript, {"torch.jit.load": load_torchscript})
    batch = Batch((torch.randn(8, 16),), 0, 8)
    assert parting_layer(run.artifact("model.pt2"), wrong, batch, run.folder) == "second"
    assert parting_layer(run.artifact("model.pt2"), right, batch, run.folder) is None


def test_an_artifact_larger_than_the_upload_is_told(tmp_path: Path) -> None:
    run = run_engine(tmp_path, nn.Sequential(nn.Linear(8, 8)), (torch.randn(2, 8),), artifacts=["torchscript", "pt2"])
    larger = [artifact.name for artifact in run.report.artifacts if artifact.size > run.report.size.before]
    told = found(run.report, "larger-than-float")
    assert bool(told) == bool(larger)
    assert all(name in told[0].message for name in larger)
    assert all(finding.severity == "info" for finding in told)
