"""Eager jobs: what torch.ao does to a module, delivered as TorchScript that runs, and told layer by layer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewbit import JobSpec, Report
from fewbit.contract.capabilities import FORMATS
from fewbit.contract.report import ReportModel
from fewbit.contract.resources import InputSignature, ModelFormat
from service.jobs.support import resolve_defaults, unsuited, unsupported
from tests.workers import packed
from tests.workers.engine.runs import EngineRun
from workers.engine.eager.script import Positional, to_torchscript
from workers.engine.formats import READERS
from workers.engine.pipeline import convert, verify
from workers.engine.task import Task
from workers.errors import EngineError

STOCK: dict[str, Any] = {"weights": {"granularity": "per_tensor"}, "artifacts": ["torchscript"]}
"""What the gateway makes of ``{"backend": "eager"}``."""


def run_upload(
    folder: Path, upload: Path, format: ModelFormat, arrays: dict[str, Any], backend: str = "eager", **spec: Any
) -> EngineRun:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "evaluation.npz", **arrays)
    spec = (STOCK if backend == "eager" else {}) | spec
    Task(
        job="job_test",
        model=ReportModel(id="mdl_test", sha256="", format=format),
        model_file=str(upload.rename(folder / "model").name),
        model_size=(folder / "model").stat().st_size,
        spec=JobSpec.model_validate(
            {"model": "mdl_test", "backend": backend, "evaluation": {"dataset": "dst_test"}, **spec}
        ),
        evaluation="evaluation.npz",
        threads=1,
    ).write(folder)
    convert(folder, lambda stage, share: None)
    verify(folder, lambda stage, share: None)
    return EngineRun(folder, Report.model_validate_json((folder / "report.json").read_bytes()))


def run_stock(folder: Path, module: nn.Module, arrays: dict[str, Any], **spec: Any) -> EngineRun:
    folder.mkdir(exist_ok=True)
    return run_upload(folder, packed.saved(module.eval(), folder / "upload"), "module", arrays, **spec)


def run_folder(folder: Path, architecture: str, arrays: dict[str, Any], **spec: Any) -> EngineRun:
    folder.mkdir(exist_ok=True)
    files = packed.folder(packed.pretrained(architecture), folder)
    return run_upload(folder, packed.zipped(files, folder / "upload"), "transformers", arrays, **spec)


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def tokens(samples: int, length: int) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(3, 90, (samples, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def quantized_layers(run: EngineRun) -> set[str]:
    return {row.name for row in run.report.layers if row.quantized}


def kernels_by_layer(run: EngineRun) -> dict[str, str | None]:
    return {row.name: row.executed for row in run.report.layers}


def reasons(run: EngineRun) -> dict[str, str]:
    return {row.name: row.reason.code for row in run.report.layers if row.reason is not None}


def load_script(run: EngineRun) -> torch.jit.ScriptModule:
    return torch.jit.load(run.artifact("model.ts.pt"))


# ---- dynamic ----


def test_a_perceptron_is_what_quantize_dynamic_makes_of_it(tmp_path: Path) -> None:
    module = packed.sequential()
    run = run_stock(tmp_path, module, {"input": noise(70, 8)})

    assert kernels_by_layer(run) == {"0": "quantized::linear_dynamic", "2": "quantized::linear_dynamic"}
    scheme = run.layer("0").scheme
    assert scheme is not None
    assert scheme.activations is not None
    assert (scheme.weights.granularity, scheme.activations.mode) == ("per_tensor", "dynamic")
    assert (scheme.activations.granularity, scheme.activations.reduce_range) == ("per_tensor", True)
    given = torch.from_numpy(noise(5, 8))
    torch.testing.assert_close(load_script(run)(given), by_hand(module)(given), rtol=0, atol=1e-6)


def by_hand(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(module)


def test_the_report_is_whole(tmp_path: Path) -> None:
    labels = np.arange(70) % 4
    run = run_stock(tmp_path, packed.sequential(), {"input": noise(70, 8), "labels": labels}, gates={"min_coverage": 1})
    report = run.report
    assert (report.verdict, report.coverage.layers.quantized, report.coverage.macs) == ("pass", 2, 1.0)
    assert report.accuracy is not None
    assert (report.accuracy.artifact, report.accuracy.samples, report.accuracy.labelled) == ("model.ts.pt", 70, True)
    assert report.accuracy.output.sqnr_db > 25
    assert report.latency is not None
    assert set(report.latency.artifacts) == {"torchscript"}
    assert [(artifact.name, artifact.verified) for artifact in report.artifacts] == [("model.ts.pt", True)]
    for row in report.layers:
        assert row.error is not None
        assert row.error.output_sqnr_db is not None
        assert 25 < row.error.output_sqnr_db < 60
        assert row.weights is not None


def test_per_channel_is_taken_when_asked_for(tmp_path: Path) -> None:
    module = packed.sequential()
    module[0].weight.data[0] *= 50  # one large row, which a single scale would have all others pay for
    data = {"input": noise(40, 8)}
    one = run_stock(tmp_path / "one", module, data)
    many = run_stock(tmp_path / "many", module, data, weights={"granularity": "per_channel"})
    scheme = many.layer("0").scheme
    assert scheme is not None
    assert scheme.weights.granularity == "per_channel"
    assert stored_sqnr(many, "per_channel") > stored_sqnr(one, "per_tensor")
    (channels,) = {row.scheme.weights.granularity for row in many.report.layers if row.scheme}
    assert channels == "per_channel"


def stored_sqnr(run: EngineRun, granularity: str) -> float:
    stats = run.layer("0").weights
    assert stats is not None
    return stats.sqnr_db[granularity]


def test_an_encoder_runs_although_its_fast_path_would_not(tmp_path: Path) -> None:
    run = run_stock(tmp_path, packed.encoder(), {"src": noise(40, 6, 16)})
    assert quantized_layers(run) == {f"layers.{index}.linear{number}" for index in (0, 1) for number in (1, 2)}
    assert reasons(run) == {
        f"layers.{index}.self_attn.{projection}": "mha" for index in (0, 1) for projection in ("in_proj", "out_proj")
    }
    kernels = kernels_by_layer(run)
    assert {kernels[name] for name in quantized_layers(run)} == {"quantized::linear_dynamic"}
    assert all(kernels[name] in FLOAT_KERNELS for name in reasons(run))
    assert "fastpath" in {finding.code for finding in run.report.findings}
    assert torch.backends.mha.get_fastpath_enabled()  # left as it was found
    assert load_script(run)(torch.randn(3, 9, 16)).shape == (3, 9, 16)


FLOAT_KERNELS = {"aten::addmm", "aten::mm", "aten::linear", "aten::mkldnn_linear", "mkldnn::_linear_pointwise"}


def test_a_model_that_is_a_single_layer_stays_float(tmp_path: Path) -> None:
    run = run_stock(tmp_path, packed.recurrent(), {"input": noise(40, 5, 8)})
    assert reasons(run) == {"": "root-module"}
    assert not run.layer("").eager.quantized
    assert run.report.accuracy is not None
    assert run.report.accuracy.output.sqnr_db > 100


def test_a_bert_folder_is_swapped_and_its_sizes_stay_free(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "BertModel", tokens(40, 12))
    linears = {row.name for row in run.report.layers if row.type == "torch.nn.Linear"}
    assert len(linears) == 13
    assert quantized_layers(run) == linears
    assert {kernels_by_layer(run)[name] for name in linears} == {"quantized::linear_dynamic"}
    assert set(reasons(run).values()) == {"embedding-qconfig"}
    given = tokens(3, 7)
    script, model = load_script(run), by_hand(packed.pretrained("BertModel"))
    with torch.no_grad():
        wanted = model(**{name: torch.from_numpy(value) for name, value in given.items()})
        got = script(*map(torch.from_numpy, given.values()))
    torch.testing.assert_close(got["last_hidden_state"], wanted.last_hidden_state, rtol=1e-4, atol=1e-4)


def test_calls_of_a_shared_module_that_stay_float_are_told(tmp_path: Path) -> None:
    shared = nn.Linear(8, 8)
    run = run_stock(tmp_path, nn.Sequential(shared, nn.ReLU(), shared), {"input": noise(40, 8)})
    assert kernels_by_layer(run) == {"0": "quantized::linear_dynamic"}
    (finding,) = [finding for finding in run.report.findings if finding.code == "shared-module"]
    assert finding.layer == "0"
    assert "called as 2" in finding.message


def test_layers_that_are_no_linear_are_told_by_their_float_kernels(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "GPT2LMHeadModel", tokens(8, 6))
    kernels = kernels_by_layer(run)
    assert quantized_layers(run) == {"lm_head"}
    assert kernels.pop("lm_head") == "quantized::linear_dynamic"
    assert set(kernels.values()) == {"aten::index_select", "aten::mm"}


def test_an_excluded_layer_stays_float(tmp_path: Path) -> None:
    rule = {"match": "2", "quantize": False}
    for method in ("dynamic", "static"):
        run = run_stock(tmp_path / method, packed.sequential(), {"input": noise(40, 8)}, method=method, layers=[rule])
        assert quantized_layers(run) == {"0"}
        assert reasons(run) == {"2": "excluded-by-user"}
        assert kernels_by_layer(run)["2"] in FLOAT_KERNELS


# ---- static ----


def test_a_convolutional_network_is_calibrated_fused_and_packed(tmp_path: Path) -> None:
    run = run_stock(tmp_path, packed.convolutional(), {"input": noise(70, 3, 8, 8)}, method="static")
    assert kernels_by_layer(run) == {"0": "quantized::conv2d_relu", "5": "quantized::linear"}
    scheme = run.layer("0").scheme
    assert scheme is not None
    assert scheme.activations is not None
    assert (scheme.weights.granularity, scheme.activations.mode) == ("per_channel", "static")
    assert run.report.accuracy is not None
    assert run.report.accuracy.output.sqnr_db > 20
    for row in run.report.layers:
        assert row.error is not None
        assert row.error.output_sqnr_db is not None
        assert row.error.output_sqnr_db > 20
    assert "calibrated-on-evaluation" in {finding.code for finding in run.report.findings}
    assert load_script(run)(torch.randn(3, 3, 8, 8)).shape == (3, 3)


def test_what_fx_takes_as_one_piece_says_so(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    module = nn.Sequential(nn.Linear(16, 16), layer, nn.Linear(16, 4))
    run = run_stock(tmp_path, module, {"input": noise(40, 6, 16)}, method="static")
    assert quantized_layers(run) == {"0", "2"}
    assert set(reasons(run)) == {
        f"1.{name}" for name in ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    }
    assert set(reasons(run).values()) == {"fx-leaf"}


def test_a_single_linear_is_found_where_fx_hides_it(tmp_path: Path) -> None:
    run = run_stock(tmp_path, nn.Linear(8, 4), {"input": noise(40, 8)}, method="static")
    assert kernels_by_layer(run) == {"": "quantized::linear"}


def test_weights_that_are_not_finite_end_the_job_in_torchs_words(tmp_path: Path) -> None:
    module = packed.sequential()
    module[0].weight.data[0, 0] = float("nan")
    with pytest.raises(EngineError, match=r"RuntimeError.*backend: graph") as raised:
        run_stock(tmp_path, module, {"input": noise(8, 8)})
    assert raised.value.slug == "quantization-failed"


def test_a_module_that_torch_cannot_follow_fails_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Proxy.*backend: graph") as raised:
        run_folder(tmp_path, "BertModel", tokens(8, 12), method="static")
    assert raised.value.slug == "quantization-failed"


# ---- the verdict of graph jobs ----

VERDICTS: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "perceptron": (packed.sequential(), {"input": noise(8, 8)}),
    "convolutions": (packed.convolutional(), {"input": noise(8, 3, 8, 8)}),
    "encoder": (packed.encoder(), {"src": noise(8, 6, 16)}),
    "tokens": (packed.tokens(), {"input": np.ones((8, 4), np.int64)}),
    "linear": (nn.Linear(8, 4), {"input": noise(8, 8)}),
    "cell": (nn.GRUCell(8, 8), {"input": noise(8, 8)}),
    "lstm": (packed.recurrent(), {"input": noise(8, 5, 8)}),
}


@pytest.mark.parametrize("situation", VERDICTS)
def test_the_verdict_of_a_graph_job_is_what_an_eager_job_does(situation: str, tmp_path: Path) -> None:
    module, data = VERDICTS[situation]
    done = run_stock(tmp_path / "eager", module, data)
    said = run_stock(tmp_path / "graph", module, data, backend="graph")
    assert_same(said, done)


@pytest.mark.parametrize(
    "architecture", ["BertForSequenceClassification", "GPT2LMHeadModel", "T5ForConditionalGeneration"]
)
def test_so_it_is_for_transformers(architecture: str, tmp_path: Path) -> None:
    data = tokens(8, 6)
    data |= {"decoder_input_ids": data["input_ids"]} if architecture.startswith("T5") else {}
    done = run_folder(tmp_path / "eager", architecture, data)
    said = run_folder(tmp_path / "graph", architecture, data, backend="graph")
    assert_same(said, done)


def assert_same(said: EngineRun, done: EngineRun) -> None:
    assert said.report.layers
    assert {row.name: row.eager.quantized for row in said.report.layers} == {
        row.name: row.quantized for row in done.report.layers
    }


# ---- what the gateway makes of it ----


def eager_spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"model": "mdl_test", "backend": "eager", **fields})


def test_the_stored_spec_has_torchs_defaults() -> None:
    stored = resolve_defaults(eager_spec())
    assert (stored.artifacts, stored.weights.granularity) == (("torchscript",), "per_tensor")
    assert resolve_defaults(eager_spec(method="static")).weights.granularity == "per_channel"
    assert resolve_defaults(eager_spec(weights={"granularity": "per_channel"})).weights.granularity == "per_channel"
    graph = JobSpec(model="mdl_test")
    assert resolve_defaults(graph) is graph


def test_the_stored_spec_can_be_posted_again() -> None:
    for method in ("dynamic", "static"):
        stored = resolve_defaults(eager_spec(method=method, evaluation={"dataset": "dst_test"}))
        again = JobSpec.model_validate_json(stored.model_dump_json())
        assert not list(unsupported(again))
        assert resolve_defaults(again) == stored


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"artifacts": ["torchscript", "pt2"]}, "/artifacts/1"),
        ({"method": "weight_only"}, "/method"),
        ({"weights": {"range": "mse"}}, "/weights/range"),
        ({"activations": {"dtype": "int8"}}, "/activations/dtype"),
        ({"smooth": {"alpha": 0.5}}, "/smooth"),
        ({"bias_correction": True}, "/bias_correction"),
        ({"layers": [{"match": "*", "weights": {"range": "mse"}}]}, "/layers/0/weights"),
        ({"target": "arm"}, "/target"),
    ],
)
def test_what_torch_does_not_do_by_default_is_refused(fields: dict[str, Any], pointer: str) -> None:
    (error,) = unsupported(eager_spec(**fields))
    assert (error.pointer, error.code) == (pointer, "unsupported")
    assert "backend graph" in error.message


@pytest.mark.parametrize("format", FORMATS)
def test_only_an_upload_that_is_a_module_can_be_swapped(format: ModelFormat) -> None:
    codes = [(problem.pointer, problem.code) for problem in unsuited(eager_spec(), format)]
    assert codes == ([] if READERS[format].module else [("/backend", "backend-needs-module")])
    assert not list(unsuited(JobSpec(model="mdl_test"), format))


# ---- the script ----

BATCH = InputSignature(name="x", dtype="float32", shape=("batch", 8), dynamic={"batch": (1, None)})


def test_a_run_that_does_not_hold_for_other_sizes_is_not_delivered() -> None:
    module = Positional(packed.Sized().eval(), ["x"])  # a branch over the batch
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = to_torchscript(module, (torch.randn(3, 8),), (BATCH,))
        for size in (1, 2, 3, 5):
            given = torch.randn(size, 8)
            torch.testing.assert_close(script(given), module(given))


class Unwritten(nn.Module):
    """A branch over the batch, in words that TorchScript does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return {True: torch.relu, False: torch.tanh}[len(x) > 2](x)


def test_without_a_script_that_holds_the_job_fails() -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(EngineError, match=r"no TorchScript form.*backend: graph"):
            to_torchscript(Positional(Unwritten().eval(), ["x"]), (torch.randn(3, 8),), (BATCH,))
