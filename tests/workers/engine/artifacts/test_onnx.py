"""The ONNX artifact: the integer kernels of ONNX Runtime, the reference's numbers, the user's names."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests.workers.engine import models
from tests.workers.engine.runs import EngineRun, run_engine
from workers.errors import EngineError

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # torch.export's and the exporter's own

BOTH = ["pt2", "onnx"]
GROUPS_OF_32 = {"dtype": "int4", "granularity": "per_group", "group_size": 32}


def residual() -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(8, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.second(torch.relu(self.norm(self.first(x)))) + x)

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


class Eigenvalues(nn.Module):
    """Something ONNX has no operator for, after a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(self.first(x))


class Counting(nn.Module):
    """A buffer that every call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 4)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1.0)
        return self.first(x) + 0 * self.count


class WithNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.first(x), 17


def kernels(path: Path, folder: Path) -> Counter[str]:
    """What ONNX Runtime makes of the file: how often each operator stands in its own graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def answers(run: EngineRun, *inputs: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(run.artifact("model.onnx"), providers=["CPUExecutionProvider"])
    given = {declared.name: value.numpy() for declared, value in zip(session.get_inputs(), inputs, strict=True)}
    return np.asarray(session.run(None, given)[0])


def sqnr_of(run: EngineRun, kind: str) -> float:
    output = next(artifact.output for artifact in run.report.artifacts if artifact.kind == kind)
    assert output is not None
    return output.sqnr_db


@pytest.mark.parametrize(
    ("method", "model", "example", "expected"),
    [
        ("dynamic", models.mlp(), (torch.randn(2, 64),), {"MatMulIntegerToFloat": 3}),
        ("dynamic", models.Attention(), (torch.randn(2, 4, 8),), {"MatMulIntegerToFloat": 10}),
        ("dynamic", models.Functional(), (torch.randn(3, 8),), {"MatMulIntegerToFloat": 4}),
        ("static", models.mlp(), (torch.randn(2, 64),), {"QGemm": 3}),
        ("static", models.Attention(), (torch.randn(2, 4, 8),), {"MatMulIntegerToFloat": 7, "QGemm": 3}),
        ("static", residual(), (torch.randn(2, 3, 16, 16),), {"QLinearConv": 3, "QLinearAdd": 1, "QGemm": 1}),
    ],
    ids=["mlp", "attention", "functional", "mlp static", "attention static", "residual static"],
)
def test_every_integer_product_runs_on_an_integer_kernel(
    method: str,
    model: nn.Module,
    example: tuple[Tensor, ...],
    expected: dict[str, int],
    tmp_path: Path,
) -> None:
    run = run_engine(tmp_path, model, example, method=method, artifacts=BOTH, threads=1)
    found = kernels(run.artifact("model.onnx"), tmp_path)
    assert {name: found[name] for name in expected} == expected
    assert found["Gemm"] + found["Conv"] + found["FusedGemm"] == 0
    assert sqnr_of(run, "onnx") > sqnr_of(run, "pt2") - 1


def test_int4_weights_stay_int4_in_the_file_and_in_memory(tmp_path: Path) -> None:
    run = run_engine(
        tmp_path, models.mlp(), (torch.randn(2, 64),), method="weight_only", weights=GROUPS_OF_32, artifacts=["onnx"],
        threads=1,
    )  # fmt: skip
    weights = {
        weight.data_type for weight in onnx.load(run.artifact("model.onnx")).graph.initializer if len(weight.dims) > 1
    }
    assert onnx.TensorProto.INT4 in weights
    assert kernels(run.artifact("model.onnx"), tmp_path)["MatMulNBits"] == 3
    assert run.artifact("model.onnx").stat().st_size < 0.25 * sum(
        4 * parameter.numel() for parameter in models.mlp().parameters()
    )


def test_equal_weights_are_stored_once_in_int4(tmp_path: Path) -> None:
    layer = nn.Linear(32, 32)
    model = nn.Sequential(layer, nn.ReLU(), copy.deepcopy(layer))
    run = run_engine(
        tmp_path, model, (torch.randn(2, 32),), method="weight_only", weights=GROUPS_OF_32, artifacts=BOTH, threads=1
    )
    held = onnx.load(run.artifact("model.onnx")).graph.initializer
    assert [weight.data_type for weight in held if tuple(weight.dims) == (32, 32)] == [onnx.TensorProto.INT4]
    assert sqnr_of(run, "onnx") > sqnr_of(run, "pt2") - 1


def test_a_small_weight_stays_in_integers(tmp_path: Path) -> None:
    run = run_engine(tmp_path, nn.Linear(16, 8), (torch.randn(2, 16),), method="weight_only", artifacts=["onnx"])
    held = onnx.load(run.artifact("model.onnx")).graph.initializer
    assert [weight.data_type for weight in held if sorted(weight.dims) == [8, 16]] == [onnx.TensorProto.INT8]


def test_int4_tables_are_gathered_packed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 32))
    ids = torch.zeros(2, 5, dtype=torch.long)
    run = run_engine(
        tmp_path, model, (ids,), method="weight_only", weights=GROUPS_OF_32, artifacts=BOTH, threads=1
    )  # fmt: skip
    assert sqnr_of(run, "onnx") > sqnr_of(run, "pt2") - 1
    held = onnx.load(run.artifact("model.onnx")).graph.initializer
    assert onnx.TensorProto.UINT8 in {weight.data_type for weight in held if tuple(weight.dims) == (64, 16)}


def test_weights_that_are_integers_only_in_store_lose_nothing_more(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.mlp(), (torch.randn(2, 64),), method="weight_only", artifacts=BOTH, threads=1)
    assert sqnr_of(run, "onnx") == pytest.approx(sqnr_of(run, "pt2"), abs=0.01)


@pytest.mark.parametrize("method", ["dynamic", "static", "weight_only"])
@pytest.mark.parametrize(
    ("model", "example"),
    [
        (models.Kinds(), torch.randn(3, 8)),
        (models.Mixed(), torch.zeros(3, 5, dtype=torch.long)),
        (models.CalledTwice(), torch.randn(3, 8)),
        (models.Tied(), torch.zeros(3, 5, dtype=torch.long)),
        (models.Conditional(), torch.randn(3, 8)),
        (models.small().double(), torch.randn(3, 8).double()),
        (models.small().half(), torch.randn(3, 8).half()),
    ],
    ids=["kinds", "mixed", "twice", "tied", "conditional", "float64", "float16"],
)
def test_it_is_as_close_to_float_as_the_reference(
    method: str, model: nn.Module, example: Tensor, tmp_path: Path
) -> None:
    run = run_engine(tmp_path, model, (example,), method=method, artifacts=BOTH, threads=1)
    assert [artifact.kind for artifact in run.report.artifacts] == BOTH
    assert sqnr_of(run, "onnx") > sqnr_of(run, "pt2") - 1


def test_no_weight_is_stored_in_float(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.mlp(), (torch.randn(2, 64),), artifacts=["onnx"], threads=1)
    held = onnx.load(run.artifact("model.onnx")).graph.initializer
    assert {weight.data_type for weight in held if len(weight.dims) > 1} == {onnx.TensorProto.INT8}


def test_a_table_tied_to_the_head_is_stored_once(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.Tied(), (torch.zeros(3, 5, dtype=torch.long),), artifacts=["onnx"], threads=1)
    held = onnx.load(run.artifact("model.onnx")).graph.initializer
    assert [
        tuple(weight.dims) for weight in held if weight.data_type == onnx.TensorProto.INT8 and len(weight.dims) > 1
    ] == [(32, 8)]


def test_inputs_have_the_names_of_the_arguments_and_any_batch_goes(tmp_path: Path) -> None:
    example = (torch.randn(2, 8), torch.ones(2, 8, dtype=torch.bool))
    run = run_engine(tmp_path, models.Structured(), example, artifacts=["onnx"], threads=1)
    session = onnxruntime.InferenceSession(run.artifact("model.onnx"), providers=["CPUExecutionProvider"])
    assert [declared.name for declared in session.get_inputs()] == ["x", "mask"]
    for batch in (1, 7):
        assert answers(run, torch.randn(batch, 8), torch.ones(batch, 8, dtype=torch.bool)).shape == (batch, 4)


def test_a_sample_gets_the_same_answer_whatever_else_is_in_its_batch(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.mlp(), (torch.randn(2, 64),), artifacts=["onnx"], threads=1)
    x = torch.randn(9, 64)
    x[4] *= 100
    alone = np.concatenate([answers(run, sample.unsqueeze(0)) for sample in x])
    np.testing.assert_allclose(answers(run, x), alone, rtol=1e-5, atol=1e-5)


def test_the_file_says_nothing_of_the_machine_it_was_made_on(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.mlp(), (torch.randn(2, 64),), artifacts=["onnx"], threads=1)
    content = run.artifact("model.onnx").read_bytes()
    assert b"/site-packages/" not in content
    assert str(Path.cwd()).encode() not in content


@pytest.mark.parametrize(
    ("model", "example", "named"),
    [
        (models.small().bfloat16(), torch.randn(2, 8).bfloat16(), "Relu"),
        (nn.Linear(8, 4).bfloat16(), torch.randn(2, 8).bfloat16(), "bfloat16"),
        (Eigenvalues(), torch.randn(2, 4, 4), "linalg_eigh"),
        (Counting(), torch.randn(2, 8), "count"),
        (WithNumber(), torch.randn(2, 8), "17"),
        (nn.LSTM(8, 8, batch_first=True, proj_size=4), torch.randn(2, 5, 8), "no projection"),
    ],
    ids=["no kernel", "no dtype", "no operator", "state", "no tensor", "no projection"],
)
def test_what_onnx_cannot_express_is_named_and_the_rest_is_delivered(
    model: nn.Module, example: Tensor, named: str, tmp_path: Path
) -> None:
    run = run_engine(tmp_path, model, (example,), artifacts=BOTH, threads=1)
    finding = next(row for row in run.report.findings if row.code == "artifact-not-written")
    assert "model.onnx" in finding.message
    assert named in finding.message
    assert ".." not in finding.message
    assert [artifact.kind for artifact in run.report.artifacts] == ["pt2"]
    assert not run.artifact("model.onnx").exists()


def test_a_job_that_wants_only_what_cannot_be_written_fails(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="linalg_eigh") as raised:
        run_engine(tmp_path, Eigenvalues(), (torch.randn(2, 4, 4),), artifacts=["onnx"], threads=1)
    assert raised.value.slug == "quantization-failed"
