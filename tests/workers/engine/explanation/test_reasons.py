"""Reasons that no situation makes: of the spec, of other uploads than a .pt2, of what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewbit.contract.report import Report
from tests.workers import packed
from tests.workers.engine import models
from tests.workers.engine.runs import export, run_engine, run_upload
from workers.engine.graph.program import load
from workers.errors import EngineError
from workers.intake.scan import scan

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

EXAMPLE = (torch.randn(4, 64),)


@torch.library.custom_op("reasons::product", mutates_args=())
def product(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.t()


@product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(product(x, self.hidden.weight))


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mixing", torch.eye(8).to_sparse())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.mm(self.mixing, x.t()).t())


def reason_codes(report: Report) -> dict[str, str | None]:
    return {row.name: row.reason.code if row.reason else None for row in report.layers}


def verdict_codes(report: Report) -> dict[str, str | None]:
    return {row.name: row.eager.reason.code if row.eager.reason else None for row in report.layers}


def found_in(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


def test_a_layer_excluded_by_the_job_points_to_the_entry_that_decided(tmp_path: Path) -> None:
    rules = [{"match": "*", "weights": {"range": "mse"}}, {"match": "4", "quantize": False}]
    run = run_engine(tmp_path, models.mlp(), EXAMPLE, layers=rules, artifacts=["pt2"])
    assert reason_codes(run.report) == {"0": None, "2": None, "4": "excluded-by-user"}
    requested = run.layer("4").requested
    assert requested is not None
    assert (requested.quantized, requested.weights, requested.rule) == (False, None, "/layers/1")
    asked = run.layer("0").requested
    assert asked is not None
    assert (asked.quantized, asked.activations, asked.rule) == (True, "dynamic", "/layers/0")
    assert "synthetic-data" in found_in(run.report)


def test_a_group_size_that_does_not_divide_has_its_patch(tmp_path: Path) -> None:
    weights = {"granularity": "per_group", "group_size": 48}
    run = run_engine(tmp_path, models.mlp(), EXAMPLE, weights=weights, artifacts=["pt2"], method="weight_only")
    reason = run.layer("0").reason
    assert reason is not None
    assert reason.code == "shape-constraint"
    assert reason.patch == {"layers": [{"match": "0", "weights": {"granularity": "per_channel"}}]}


def test_a_custom_operator_hides_its_layer(tmp_path: Path) -> None:
    run = run_engine(tmp_path, Opaque(), (torch.randn(4, 8),), artifacts=["pt2"])
    assert reason_codes(run.report) == {"hidden": "opaque-op", "head": None}
    assert "custom-operator" in found_in(run.report)


def test_a_program_in_train_mode_is_named(tmp_path: Path) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.dropout(self.fc(x), 0.5, True)

    run = run_engine(tmp_path, Dropping(), (torch.randn(4, 8),), artifacts=["pt2"], method="analyze")
    assert "train-mode" in found_in(run.report)


def test_a_static_job_without_calibration_says_what_it_used(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    run = run_engine(tmp_path, models.mlp(), EXAMPLE, {"input": x}, method="static")
    assert "calibrated-on-evaluation" in found_in(run.report)


def test_a_job_with_calibration_data_alone_is_measured_on_them(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(3, size=(16, 64)).astype(np.float32)
    given = {"input": x, "labels": np.zeros(16, dtype=np.int64)}
    run = run_engine(tmp_path, models.mlp(), EXAMPLE, calibration=given, method="static")
    assert found_in(run.report) & {"evaluated-on-calibration", "synthetic-data", "calibration-drift"} == {
        "evaluated-on-calibration"
    }
    assert run.report.accuracy is not None
    assert (run.report.accuracy.kind, run.report.accuracy.samples, run.report.accuracy.labelled) == ("real", 16, False)


def test_the_source_line_names_the_file_and_no_folder(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.Functional(), (torch.randn(4, 8),), artifacts=["pt2"])
    reason = run.layer("weight").eager.reason
    assert reason is not None
    source = reason.evidence["source"]
    assert source.startswith("models.py:")
    assert source.endswith("in forward: x = F.linear(x, self.weight, self.bias)")
    assert reason.evidence["bytes"] == 8 * 8 * 4
    assert reason.evidence["macs"] == 8 * 8


def test_a_sparse_weight_keeps_its_layout(tmp_path: Path) -> None:
    """torch cannot save such a program; the rule is asked about its layer."""
    from dataclasses import replace

    from workers.engine.explanation.reasons import unquantizable
    from workers.engine.graph.layers import find_layers

    layer = find_layers(load(export(models.mlp(), EXAMPLE, tmp_path / "model.pt2")))[0][0]
    operand = replace(layer.operands[0], value=torch.eye(8).to_sparse())
    reason = unquantizable(replace(layer, operands=(operand,)))
    assert reason is not None
    assert reason.code == "layout"


# ---- Other uploads: no source lines, types as far as they are known ----


def upload(tmp_path: Path, format: Any, module: nn.Module, **arrays: Tensor) -> Report:
    path = (packed.saved if format == "module" else packed.scripted)(module.eval(), tmp_path / "upload")
    assert scan(path) == format
    data = {name: value.numpy() for name, value in arrays.items()}
    return run_upload(tmp_path, path, format, data, artifacts=["pt2"]).report


FORMATS = pytest.mark.parametrize("format", ["module", "torchscript"])


@FORMATS
def test_the_root_layer_of_any_upload_is_named(format: Any, tmp_path: Path) -> None:
    assert verdict_codes(upload(tmp_path, format, nn.Linear(8, 4), input=torch.randn(4, 8))) == {"": "root-module"}


@FORMATS
def test_convolutions_and_tables_of_any_upload_are_named(format: Any, tmp_path: Path) -> None:
    report = upload(tmp_path, format, packed.convolutional(), input=torch.randn(4, 3, 8, 8))
    assert verdict_codes(report) == {"0": "not-linear-type", "5": None}


@FORMATS
def test_embeddings_of_any_upload_are_named(format: Any, tmp_path: Path) -> None:
    report = upload(tmp_path, format, packed.tokens(), input=torch.randint(0, 10, (4, 6)))
    assert verdict_codes(report) == {"0": "embedding-qconfig", "1": None}


@FORMATS
def test_attention_of_any_upload_is_named(format: Any, tmp_path: Path) -> None:
    codes = verdict_codes(upload(tmp_path, format, packed.encoder(), src=torch.randn(2, 5, 16)))
    assert codes["layers.0.self_attn.in_proj"] == "mha"
    assert codes["layers.0.self_attn.out_proj"] == "mha"


@FORMATS
def test_numbers_of_any_upload_are_named(format: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight.mul_(1e-8)
        model[1].weight[0, 0] = 1e4
        model[2].weight[0, 0] = float("nan")
    report = upload(tmp_path, format, model, input=torch.randn(4, 8))
    assert verdict_codes(report) == {"0": "numeric", "1": "outlier", "2": "nan-inf"}
    assert reason_codes(report)["2"] == "nan-inf"


def test_a_qconfig_left_in_a_saved_model_shows_in_an_eager_job(tmp_path: Path) -> None:
    model = packed.sequential()
    model[0].qconfig = None
    path = packed.saved(model, tmp_path / "upload")
    data = {"input": np.zeros((4, 8), np.float32)}
    report = run_upload(tmp_path, path, "module", data, backend="eager", artifacts=["torchscript"]).report
    assert reason_codes(report) == {"0": "not-swapped", "2": None}


def test_a_table_has_no_static_pattern_in_an_eager_job(tmp_path: Path) -> None:
    path = packed.saved(packed.tokens(), tmp_path / "upload")
    data = {"input": np.ones((4, 6), np.int64)}
    spec: dict[str, Any] = {"backend": "eager", "method": "static", "artifacts": ["torchscript"]}
    report = run_upload(tmp_path, path, "module", data, calibration=data, **spec).report
    assert reason_codes(report) == {"0": "fx-no-pattern", "1": None}


@pytest.mark.parametrize(
    ("architecture", "layer", "code"),
    [
        ("GPT2LMHeadModel", "transformer.h.0.attn.c_attn", "lookalike"),
        ("BertModel", "embeddings.word_embeddings", "embedding-qconfig"),
        ("MixtralForCausalLM", "model.layers.0.mlp.gate", "lookalike"),
        ("ResNetForImageClassification", "classifier.1", None),
    ],
)
def test_layers_of_a_transformers_folder_are_named(
    architecture: str, layer: str, code: str | None, tmp_path: Path
) -> None:
    path = packed.zipped(packed.folder(packed.pretrained(architecture), tmp_path), tmp_path / "upload")
    report = run_upload(tmp_path, path, "transformers", artifacts=["pt2"], method="analyze").report
    assert verdict_codes(report)[layer] == code


# ---- Refused at upload ----


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.LazyLinear(4)),
        lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4))),
    ],
    ids=["lazy", "already quantized"],
)
def test_a_module_that_is_not_ready_is_refused_by_name(make: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Lazy|Uninitialized|ScriptObject"):
        scan(packed.saved(make(), tmp_path / "upload"))
