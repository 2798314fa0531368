"""Whole jobs: what the spec asks for, what the report says."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.workers.engine import models
from tests.workers.engine.runs import export, run_engine
from tests.workers.uploads import with_program
from workers.engine.formats import inspect_upload
from workers.engine.graph.program import load
from workers.errors import EngineError

X = np.random.default_rng(0).normal(size=(70, 64)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, 70)
EXAMPLE = (torch.randn(2, 64),)


def test_the_reported_accuracy_is_what_the_artifact_gives(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.mlp(), EXAMPLE, {"x": X, "labels": LABELS})
    accuracy = run.report.accuracy
    assert accuracy is not None
    module = torch.jit.load(run.artifact("model.ts.pt"))
    with torch.no_grad():
        after = torch.cat([module(part) for part in torch.from_numpy(X).split(accuracy.batch_size)]).argmax(1).numpy()
        before = torch.export.load(tmp_path / "model.pt2").module()(torch.from_numpy(X)).argmax(1).numpy()
    assert accuracy.kind == "real"
    assert accuracy.metrics[0].after == float((after == LABELS).mean())
    assert accuracy.metrics[0].before == float((before == LABELS).mean())
    assert {flip.sample for flip in accuracy.flips} == set(np.flatnonzero(before != after).tolist())


def test_analyze_quantizes_nothing_and_says_so_for_each_layer(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.mlp(), EXAMPLE, method="analyze")
    assert run.report.coverage.reasons == {"analyze-only": 3}
    assert not run.report.artifacts
    assert run.report.size.after is None
    assert run.report.layers[0].reason is not None
    assert run.report.layers[0].reason.patch == {"method": "dynamic"}
    assert all(row.weights is not None for row in run.report.layers)


def test_later_rules_win_and_excluded_layers_name_their_rule(tmp_path: Path) -> None:
    rules = [{"match": "*", "quantize": False}, {"match": "2", "quantize": True}]
    run = run_engine(tmp_path, models.mlp(), EXAMPLE, layers=rules, artifacts=["torchscript"])
    assert [row.quantized for row in run.report.layers] == [False, True, False]
    assert run.layer("0").reason is not None
    assert run.layer("0").reason.code == "excluded-by-user"
    assert run.layer("0").executed == "aten::addmm"
    assert run.report.coverage.layers.model_dump() == {"quantized": 1, "total": 3}


def test_granularity_and_range_follow_the_layers_rule(tmp_path: Path) -> None:
    rules = [{"match": "0", "weights": {"granularity": "per_tensor", "range": {"clip": [-0.05, 0.05]}}}]
    run = run_engine(tmp_path, models.mlp(), EXAMPLE, layers=rules, artifacts=["torchscript"])
    assert run.layer("0").scheme is not None
    assert run.layer("0").scheme.weights.granularity == "per_tensor"
    assert run.layer("0").weights is not None
    assert run.layer("0").weights.saturated_ratio > 0
    assert run.layer("2").scheme is not None
    assert run.layer("2").scheme.weights.granularity == "per_channel"


def test_a_gate_that_is_not_met_fails_the_verdict_not_the_job(tmp_path: Path) -> None:
    gates = {"min_coverage": 1.0, "max_size_ratio": 0.01, "max_drop": {"accuracy": 0.5}}
    run = run_engine(tmp_path, models.mlp(), EXAMPLE, {"x": X, "labels": LABELS}, gates=gates)
    assert run.report.verdict == "fail"
    met = {gate.gate: gate.met for gate in run.report.gates}
    assert met == {"min_coverage": True, "max_size_ratio": False, "max_drop.accuracy": True}


def test_an_outlier_under_one_scale_is_found_and_its_patch_cures_it(tmp_path: Path) -> None:
    model = models.mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = 100.0
    spec = {"weights": {"granularity": "per_tensor"}, "artifacts": ["torchscript"]}
    (tmp_path / "sick").mkdir()
    run = run_engine(tmp_path / "sick", model, EXAMPLE, **spec)
    finding = next(finding for finding in run.report.findings if finding.code == "outlier")
    assert (finding.layer, finding.severity) == ("2", "warning")
    assert finding.patch is not None
    (tmp_path / "cured").mkdir()
    cured = run_engine(tmp_path / "cured", model, EXAMPLE, **(spec | finding.patch))
    assert "outlier" not in {finding.code for finding in cured.report.findings}
    assert cured.report.accuracy is not None
    assert run.report.accuracy is not None
    assert cured.report.accuracy.output.sqnr_db > run.report.accuracy.output.sqnr_db


def test_a_nan_weight_leaves_its_layer_float_and_is_an_error(tmp_path: Path) -> None:
    model = models.mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    run = run_engine(tmp_path, model, EXAMPLE)
    assert run.report.verdict == "warn"
    assert not run.layer("0").quantized
    assert ("nan-inf", "0") in {(finding.code, finding.layer) for finding in run.report.findings}
    json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in the report"))


def test_dropout_left_on_is_said(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10)).train()
    exported = torch.export.export(model, EXAMPLE)
    assert any(node.target is torch.ops.aten.dropout.default for node in exported.graph.nodes)
    model.eval = lambda: model  # type: ignore[method-assign]  # the mistake a user makes
    run = run_engine(tmp_path, model, EXAMPLE)
    assert run.report.verdict == "warn"
    assert "train-mode" in {finding.code for finding in run.report.findings}


class Unread(nn.Module):
    """An auxiliary head, and its batch norm, whose result nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.LayerNorm(32))
        self.head, self.auxiliary = nn.Linear(32, 10), nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        self.auxiliary(x)
        out: torch.Tensor = self.head(x)
        return out


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"method": "static", "smooth": {"alpha": 0.5}, "bias_correction": True},
        {"weights": {"non_finite": "repair"}},
    ],
    ids=["plain", "smooth and corrected", "repaired"],
)
def test_a_layer_that_nobody_reads_is_listed_and_not_delivered(spec: dict[str, Any], tmp_path: Path) -> None:
    model = Unread()
    model.head.weight.data[0, 0] = math.inf if "weights" in spec else 0.1
    run = run_engine(tmp_path, model, EXAMPLE, {"x": X}, calibration={"x": X}, artifacts=["pt2"], **spec)
    assert {row.name for row in run.report.layers} == {"body.0", "head", "auxiliary.0"}
    kept = torch.export.load(run.artifact("model.pt2")).state_dict.values()
    assert not any(8 in value.shape for value in kept)


@pytest.mark.filterwarnings("ignore:No complete tensor")  # torch.export.save's own, about such a weight
def test_a_float_weight_that_is_one_row_expanded_is_delivered(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 10))
    model[0].weight = nn.Parameter(torch.randn(1, 64).expand(16, 64))
    run = run_engine(tmp_path, model, EXAMPLE, {"x": X}, layers=[{"match": "0", "quantize": False}])
    assert [row.quantized for row in run.report.layers] == [False, True]
    assert {artifact.kind for artifact in run.report.artifacts} == {"torchscript", "pt2"}


def test_without_data_the_numbers_are_called_synthetic(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.mlp(), EXAMPLE)
    assert run.report.accuracy is not None
    assert run.report.accuracy.kind == "synthetic"
    assert not run.report.accuracy.metrics
    assert "synthetic-data" in {finding.code for finding in run.report.findings}


def test_a_fixed_batch_is_padded_and_every_sample_counted_once(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.mlp(), (torch.randn(16, 64),), {"x": X, "labels": LABELS}, dynamic=False)
    assert run.report.accuracy is not None
    assert (run.report.accuracy.batch_size, run.report.accuracy.samples) == (16, 70)
    assert run.report.accuracy.output.top1_agreement is not None


def test_inspection_names_inputs_and_layers(tmp_path: Path) -> None:
    export(models.mlp(), EXAMPLE, tmp_path / "model.pt2").rename(tmp_path / "model")
    inspection = inspect_upload(tmp_path / "model", "pt2")
    (given,) = inspection.inputs
    assert (given.dtype, given.shape[1]) == ("float32", 64)
    assert given.dynamic[str(given.shape[0])] == (1, 1024)
    assert [layer.quantizable for layer in inspection.layers] == [True, True, True]


def test_another_torchs_schema_is_refused_by_its_number(tmp_path: Path) -> None:
    path = with_program(
        export(models.mlp(), EXAMPLE, tmp_path / "model.pt2"),
        tmp_path / "newer.pt2",
        lambda program: program["schema_version"].update(major=99),
    )
    with pytest.raises(EngineError, match=r"schema 99\.") as raised:
        load(path)
    assert raised.value.slug == "invalid-model"


def test_a_model_that_fails_on_the_data_says_on_which_samples(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="samples 0 to 31"):
        run_engine(tmp_path, models.mlp(), EXAMPLE, {"x": X[:, :63]})


def test_a_short_last_batch_does_not_change_what_a_sample_costs(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.mlp(), EXAMPLE, {"x": X, "labels": LABELS})
    assert len(X) % 32
    assert [row.macs for row in run.report.layers] == [64 * 256, 256 * 128, 128 * 10]


def test_a_regression_model_is_measured_by_metrics_of_numbers_and_gated_on_their_rise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
    with torch.no_grad():
        labels = model(torch.from_numpy(X))[:, 0].double().numpy() + np.random.default_rng(2).normal(size=70)
    metrics = ["mean_squared_error", "r2_score", "f1_score"]
    run = run_engine(
        tmp_path, model, EXAMPLE, {"x": X, "labels": labels}, artifacts=["torchscript"], threads=1,
        evaluation={"metrics": metrics}, gates={"max_drop": {"mean_squared_error": 10, "pearson_corrcoef": 0.5}},
    )  # fmt: skip
    accuracy = run.report.accuracy
    assert accuracy is not None
    assert [metric.name for metric in accuracy.metrics] == ["mean_squared_error", "r2_score", "pearson_corrcoef"]
    squared = accuracy.metrics[0]
    with torch.no_grad():
        after = torch.jit.load(run.artifact("model.ts.pt"))(torch.from_numpy(X))[:, 0].double().numpy()
    assert squared.after == pytest.approx(float(np.square(after - labels).mean()), rel=1e-4)
    gates = {gate.gate: gate for gate in run.report.gates}
    assert gates["max_drop.mean_squared_error"].value == pytest.approx(squared.delta)
    assert gates["max_drop.pearson_corrcoef"].met
    (unfit,) = (finding for finding in run.report.findings if finding.code == "metric-not-applicable")
    assert "f1_score needs whole numbers as labels" in unfit.message
    assert accuracy.conclusion.startswith("mean_squared_error went from")
    assert "with 70 samples (95 % interval" in accuracy.conclusion


class Tagger(nn.Module):
    """A class for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.words(tokens)))


def test_tokens_are_counted_but_for_those_marked_to_be_ignored(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    tokens, labels = random.integers(0, 50, (40, 6)), random.integers(0, 4, (40, 6))
    labels[random.random((40, 6)) < 0.3] = -100
    torch.manual_seed(0)
    run = run_engine(
        tmp_path, Tagger(), (torch.from_numpy(tokens[:2]),), {"tokens": tokens, "labels": labels}, threads=1,
        artifacts=["torchscript"], evaluation={"metrics": ["accuracy", "f1_score", "exact_match"]},
    )  # fmt: skip
    accuracy = run.report.accuracy
    assert accuracy is not None
    with torch.no_grad():
        after = torch.jit.load(run.artifact("model.ts.pt"))(torch.from_numpy(tokens)).argmax(-1).numpy()
    counted = labels != -100
    assert accuracy.metrics[0].after == pytest.approx(float((after == labels)[counted].mean()))
    assert f"{counted.sum()} labels, whole samples drawn" in accuracy.metrics[0].note
    assert accuracy.metrics[2].after == float(((after == labels) | ~counted).all(1).mean())
    assert sum(label.samples for label in accuracy.classes) == counted.sum()


def test_the_classes_that_changed_most_come_first_and_the_conclusion_says_what_it_means(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.mlp(), EXAMPLE, {"x": X, "labels": LABELS}, weights={"granularity": "per_tensor"})
    accuracy = run.report.accuracy
    assert accuracy is not None
    assert sum(label.samples for label in accuracy.classes) == 70
    changes = [abs(label.delta) for label in accuracy.classes]
    assert changes == sorted(changes, reverse=True)
    assert "with 70 samples (95 % interval" in accuracy.conclusion
    assert "changed." in accuracy.conclusion


def test_without_labels_the_conclusion_speaks_of_closeness_and_says_it_is_no_accuracy(tmp_path: Path) -> None:
    run = run_engine(tmp_path, models.mlp(), EXAMPLE, {"x": X}, artifacts=["torchscript"])
    assert run.report.accuracy is not None
    assert "not accuracy" in run.report.accuracy.conclusion
    assert "dB from float" in run.report.accuracy.conclusion
    assert "the top class is the same for" in run.report.accuracy.conclusion
