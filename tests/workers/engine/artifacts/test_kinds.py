"""The artifacts: nothing dead in them, nothing of this project needed, the same numbers everywhere."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fewbit.runtime.kernels import LINEAR as KERNEL
from tests.workers.engine import models
from tests.workers.engine.runs import EngineRun, run_engine
from workers.engine.artifacts.kinds import load_pt2, load_torchscript

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export's own, about the models below

ALONE = """
import sys, torch
kind, path, inputs, outputs = sys.argv[1:]
x = torch.load(inputs, weights_only=True)
run = torch.jit.load(path) if kind == "torchscript" else torch.export.load(path).module()
with torch.no_grad():
    torch.save(run(x), outputs)
assert not any(name.split(".")[0] in ("fewbit", "workers", "store", "service") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> EngineRun:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("attention")
    return run_engine(folder, models.Attention(), (torch.randn(2, 4, 8),), {"x": torch.randn(100, 4, 8).numpy()})


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> EngineRun:
    torch.manual_seed(0)
    return run_engine(tmp_path_factory.mktemp("mlp"), models.mlp(), (torch.randn(2, 64),))


def held_tensors(path: Path) -> list[torch.Tensor]:
    """Every tensor that the TorchScript program reads, packed int8 weights aside."""
    module = torch.jit.load(path)
    held = (getattr(module, name) for name in set(re.findall(r"self\.(c\d+_\w+)", module.code)))
    return [value for value in held if isinstance(value, torch.Tensor)]


def test_an_all_linear_model_is_at_most_0_30_of_its_float_weights(mlp: EngineRun) -> None:
    weights = sum(parameter.numel() * 4 for parameter in models.mlp().parameters())
    assert mlp.artifact("model.ts.pt").stat().st_size <= 0.30 * weights


def test_no_float_copy_of_a_quantized_weight_is_left_in_torchscript(attention: EngineRun) -> None:
    floats = held_tensors(attention.artifact("model.ts.pt"))
    assert floats
    assert max(value.dim() for value in floats) == 1
    with zipfile.ZipFile(attention.artifact("model.ts.pt")) as archive:
        data = sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)
    int8 = sum(row.shape[0] * row.shape[1] for row in attention.report.layers)
    assert data < int8 + 30_000


def test_no_float_copy_of_a_quantized_weight_is_left_in_pt2(attention: EngineRun) -> None:
    exported = torch.export.load(attention.artifact("model.pt2"))
    held = {**exported.state_dict, **exported.constants}
    assert {value.dtype for value in held.values() if value.dim() == 2 and value.shape[1] > 1} == {torch.int8}
    assert not any(row.name and f"{row.name}.weight" in held for row in attention.report.layers)


def test_pt2_carries_no_sample_of_anybodys_data(attention: EngineRun) -> None:
    with zipfile.ZipFile(attention.artifact("model.pt2")) as archive:
        samples = archive.read("model/data/sample_inputs/model.pt")
    assert samples == b""


@pytest.mark.parametrize(("kind", "name"), [("torchscript", "model.ts.pt"), ("pt2", "model.pt2")])
def test_an_artifact_runs_in_a_process_that_knows_only_torch(
    kind: str, name: str, attention: EngineRun, tmp_path: Path
) -> None:
    x = torch.randn(5, 4, 8)
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-I", "-c", ALONE, kind, str(attention.artifact(name)), "x.pt", "y.pt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    load = load_torchscript if kind == "torchscript" else load_pt2
    with torch.no_grad():
        expected = load(attention.artifact(name))([x])[0]
    assert torch.equal(torch.load(tmp_path / "y.pt", weights_only=True), expected)


def test_a_sample_gets_the_same_answer_whatever_else_is_in_its_batch(attention: EngineRun) -> None:
    run = load_torchscript(attention.artifact("model.ts.pt"))
    x = torch.randn(33, 4, 8)
    x[7] *= 100
    with torch.no_grad():
        together = run([x])[0]
        alone = torch.cat([run([sample.unsqueeze(0)])[0] for sample in x])
    assert torch.allclose(together, alone, atol=1e-5)


def test_both_artifacts_give_the_same_classes_and_nearly_the_same_numbers(attention: EngineRun) -> None:
    x = torch.randn(64, 4, 8)
    with torch.no_grad():
        one = load_torchscript(attention.artifact("model.ts.pt"))([x])[0]
        other = load_pt2(attention.artifact("model.pt2"))([x])[0]
    assert torch.equal(one.argmax(1), other.argmax(1))
    assert torch.allclose(one, other, atol=0.02)


def test_every_quantized_layer_ran_on_the_int8_kernel(attention: EngineRun) -> None:
    assert {row.executed for row in attention.report.layers} == {KERNEL}
    assert attention.report.coverage.layers.quantized == attention.report.coverage.layers.total == 10


def test_dict_outputs_and_several_inputs_keep_their_form(tmp_path: Path) -> None:
    example = (torch.randn(2, 8), torch.ones(2, 8, dtype=torch.bool))
    run = run_engine(tmp_path, models.Structured(), example)
    outputs = torch.jit.load(run.artifact("model.ts.pt"))(torch.randn(3, 8), torch.ones(3, 8, dtype=torch.bool))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {"logits": (3, 4), "hidden": (3, 8)}
    module = torch.export.load(run.artifact("model.pt2")).module()
    outputs = module(torch.randn(3, 8), torch.ones(3, 8, dtype=torch.bool))
    assert set(outputs) == {"logits", "hidden"}


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (models.Functional(), torch.randn(3, 8)),
        (models.Kinds(), torch.randn(3, 8)),
        (models.Mixed(), torch.zeros(3, 5, dtype=torch.long)),
        (models.UnderNoGrad(), torch.randn(3, 8)),
        (models.CalledTwice(), torch.randn(3, 8)),
        (models.CalledTwiceAlike(), torch.randn(3, 8)),
        (models.Tied(), torch.zeros(3, 5, dtype=torch.long)),
        (nn.Linear(8, 4), torch.randn(3, 8)),
        (models.small().double(), torch.randn(3, 8).double()),
        (models.small().bfloat16(), torch.randn(3, 8).bfloat16()),
    ],
    ids=["functional", "kinds", "mixed", "no_grad", "twice", "twice alike", "tied", "root", "float64", "bfloat16"],
)
def test_int8_stays_close_to_float_in_every_situation(model: nn.Module, example: torch.Tensor, tmp_path: Path) -> None:
    run = run_engine(tmp_path, model, (example,))
    assert run.report.accuracy is not None
    assert run.report.accuracy.output.sqnr_db > 25
    quantizable = [row for row in run.report.layers if row.reason is None]
    assert quantizable
    assert all(row.quantized and row.executed for row in quantizable)
    assert all(row.executed == KERNEL for row in quantizable if row.scheme.activations)  # type: ignore[union-attr]
    told = [
        finding for finding in run.report.findings if finding.severity != "info" and finding.code != "slower-than-float"
    ]
    assert not told  # how fast it is depends on what else this machine does


def test_one_dimensional_inputs_are_quantized_too(tmp_path: Path) -> None:
    run = run_engine(tmp_path, nn.Sequential(nn.Linear(8, 4)), (torch.randn(8),), dynamic=False)
    module = torch.jit.load(run.artifact("model.ts.pt"))
    assert module(torch.randn(8)).shape == (4,)
    assert run.layer("0").executed == KERNEL


def test_an_empty_batch_gives_an_empty_answer(mlp: EngineRun) -> None:
    assert torch.jit.load(mlp.artifact("model.ts.pt"))(torch.randn(0, 64)).shape == (0, 10)


def test_a_row_of_zeros_or_nan_harms_no_other_row(mlp: EngineRun) -> None:
    run = load_torchscript(mlp.artifact("model.ts.pt"))
    x = torch.randn(3, 64)
    spoilt = x.clone()
    spoilt[1] = float("nan")
    spoilt[2] = 0
    with torch.no_grad():
        clean, result = run([x])[0], run([spoilt])[0]
    assert torch.equal(clean[0], result[0])
    assert bool(result[1].isnan().all())
    assert bool(np.isfinite(result[2].numpy()).all())
