"""Every situation through the engine: nothing breaks, nothing stays float without its true reason, and each artifact
gives, in an interpreter that knows only torch, what its report says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fewbit.contract.reason_codes import CODES
from fewbit.contract.report import SQNR_CAP_DB, LayerReport, Report
from tests.workers.engine.runs import EngineRun, argument_names, run_engine
from tests.workers.engine.situations import SITUATIONS, Situation
from tests.workers.engine.situations.found import FOUND, UNSEEN

pytestmark = [  # torch's and Transformers' own, about the models
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LEAST_SQNR_DB = 20.0  # int8 done right is above 30 dB on all of these; a wrong stride, sign or row is below 10
EXACT_DB = 60.0  # above this the last bits of float32 sums decide
LEAST_QUANTIZED = 0.95
LEAST_EAGER_DB = 15.0  # seven bits and one scale a weight: T5 gets 21, Llama 26

UNCOPIED = ("weight norm, old", "pruned")  # quantize_dynamic copies the model first, and such weights refuse
every_situation = pytest.mark.parametrize("name", SITUATIONS)
every_artifact = pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, situation in SITUATIONS.items() for kind in situation.artifacts]
)

ALONE = """
import json, sys, torch
from torch.utils import _pytree as pytree

def run(kind, path, inputs, outputs):
    args, keywords = torch.load(inputs, weights_only=True)
    if kind == "torchscript":
        model, args, keywords = torch.jit.load(path), (*args, *keywords.values()), {}
    else:
        model = torch.export.load(path).module()
    with torch.no_grad():
        leaves = pytree.tree_leaves(model(*args, **keywords))
    torch.save([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)], outputs)

for line in sys.stdin:
    try:
        run(*json.loads(line))
        print("ran", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace("\\n", " "), flush=True)
assert not any(name.split(".")[0] in ("fewbit", "workers", "store", "service") for name in sys.modules)
"""


class Alone:
    """An interpreter that imports torch and nothing of this project, asked to run one artifact after the other."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def outputs(self, kind: str, artifact: Path, inputs: Path) -> list[Tensor]:
        """What the artifact gives for the (positional, keyword) inputs saved in ``inputs``."""
        results = inputs.with_name(f"{kind}.outputs.pt")
        answer = self._ask(json.dumps([kind, str(artifact), str(inputs), str(results)]))
        assert answer == "ran", f"{artifact.name} alone: {answer or 'the process died'}"
        return list(torch.load(results, weights_only=True))

    def close(self) -> None:
        """Raises ``AssertionError`` when the interpreter ended badly."""
        if self.process is not None:
            self.process.communicate()
            assert self.process.returncode == 0

    def _ask(self, question: str) -> str:
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-I", "-W", "ignore", "-c", ALONE]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@dataclass(frozen=True)
class Outcome:
    """One situation after its job. ``expected``: what the float module itself gives for the example, computed before
    the engine saw it; ``inputs``: the file that holds that example."""

    situation: Situation
    run: EngineRun
    expected: Tensor
    inputs: Path

    @property
    def finite(self) -> bool:
        return bool(torch.isfinite(self.expected).all())

    @property
    def gemms(self) -> list[LayerReport]:
        return [row for row in self.run.report.layers if not row.op.startswith("aten.embedding")]


Outcomes = Callable[[str], Outcome]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """The outcome of a situation, by name: each job runs once; one that failed fails every test that asks for it."""
    done: dict[str, Outcome | Exception] = {}

    def of(name: str) -> Outcome:
        if name not in done:
            try:
                done[name] = play(SITUATIONS[name], tmp_path_factory.mktemp("situation"))
            except Exception as error:
                done[name] = error
        known = done[name]
        if isinstance(known, Exception):
            raise known
        return known

    return of


@pytest.fixture(scope="module")
def alone() -> Iterator[Alone]:
    interpreter = Alone()
    yield interpreter
    interpreter.close()


def play(situation: Situation, folder: Path) -> Outcome:
    """One job with the default method, evaluated on the situation's own example."""
    torch.manual_seed(0)
    model, example, keywords = situation.build().eval(), situation.example(), dict(situation.keywords)
    expected = first_floats(model, example, keywords)
    torch.save((example, keywords), folder / "inputs.pt")
    run = run_engine(
        folder, model, example, as_arrays(model, example, keywords), situation.dynamic, keywords=keywords,
        decompose=situation.decompose, threads=1, method="dynamic", artifacts=("torchscript", "pt2"),
    )  # fmt: skip
    return Outcome(situation, run, expected, folder / "inputs.pt")


def first_floats(model: nn.Module, example: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return primary(pytree.tree_leaves(model(*example, **keywords)))


def primary(leaves: list[object]) -> Tensor:
    """The first output that holds floats: the one a report speaks of."""
    return next(leaf.float() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())


def as_arrays(model: nn.Module, example: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> dict[str, np.ndarray]:
    names = argument_names(model, example, keywords)
    return {name: storable(value).numpy() for name, value in zip(names, (*example, *keywords.values()), strict=True)}


def storable(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


def sqnr_db(reference: Tensor, measured: Tensor) -> float:
    """Signal over noise in dB, capped as reports cap it."""
    signal = float(reference.double().square().sum())
    noise = float((reference.double() - measured.double()).square().sum())
    if noise == 0:
        return SQNR_CAP_DB
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / noise), -SQNR_CAP_DB, SQNR_CAP_DB))


@every_situation
def test_a_job_ends_with_its_artifacts_close_to_float(name: str, outcome: Outcomes) -> None:
    played = outcome(name)
    assert {artifact.kind for artifact in played.run.report.artifacts} >= set(played.situation.artifacts)
    assert played.run.report.accuracy is not None
    assert not played.finite or played.run.report.accuracy.output.sqnr_db > LEAST_SQNR_DB


@every_situation
def test_every_layer_is_listed_and_quantized_or_has_its_true_reason(name: str, outcome: Outcomes) -> None:
    played = outcome(name)
    assert len(played.gemms) >= played.situation.gemms
    stayed = {row.name: row.reason.code if row.reason else None for row in played.gemms if not row.quantized}
    assert stayed == dict(played.situation.float_layers)
    assert all(row.quantized for row in played.run.report.layers if row not in played.gemms)
    assert all(row.reason is None for row in played.run.report.layers if row.quantized)


@every_artifact
def test_an_artifact_gives_with_torch_alone_what_its_report_says(
    name: str, kind: str, outcome: Outcomes, alone: Alone
) -> None:
    played = outcome(name)
    artifact = next(artifact for artifact in played.run.report.artifacts if artifact.kind == kind)
    measured = primary(list(alone.outputs(kind, played.run.artifact(artifact.name), played.inputs)))
    assert measured.shape == played.expected.shape
    if not played.finite:
        assert torch.equal(torch.isfinite(measured), torch.isfinite(played.expected))
        return
    assert artifact.output is not None
    own, stated = sqnr_db(played.expected, measured), artifact.output.sqnr_db
    assert abs(own - stated) <= 1 or min(own, stated) > EXACT_DB


def test_nearly_all_layers_with_a_constant_operand_are_quantized(outcome: Outcomes) -> None:
    """Over the whole set. A job that fails, and a layer that is not listed, count as float."""
    quantized = total = 0
    for name, situation in SITUATIONS.items():
        rows = gemm_rows(outcome, name)
        quantized += sum(row.quantized for row in rows)
        total += max(len(rows), situation.gemms)
    assert quantized / total >= LEAST_QUANTIZED, f"{quantized} of {total} layers are quantized"


def gemm_rows(outcome: Outcomes, name: str) -> list[LayerReport]:
    try:
        return outcome(name).gemms
    except Exception:  # this very job has its own test
        return []


@pytest.mark.parametrize("name", FOUND)
def test_the_report_names_the_code_on_the_right_layer(name: str, outcome: Outcomes) -> None:
    code, layer, place = FOUND[name]
    assert layer in codes_at(outcome(name).run.report, code)[place]


def codes_at(report: Report, code: str) -> dict[str, list[str]]:
    """The layers that carry ``code``, by the place where they do."""
    found: dict[str, list[str]] = {"reason": [], "eager": [], "finding": []}
    for row in report.layers:
        found["reason"] += [row.name] if row.reason is not None and row.reason.code == code else []
        found["eager"] += [row.name] if row.eager.reason is not None and row.eager.reason.code == code else []
    for finding in report.findings:
        if finding.code == code:
            found["finding"] += [str(finding.layer), *finding.evidence.get("layers", ())]
    return found


@every_situation
def test_every_code_is_known_and_stands_where_it_may(name: str, outcome: Outcomes) -> None:
    report = outcome(name).run.report
    for row in report.layers:
        assert row.reason is None or "reason" in CODES[row.reason.code].places
        assert row.eager.reason is None or "eager" in CODES[row.eager.reason.code].places
    assert all("finding" in CODES[finding.code].places for finding in report.findings)


@every_situation
def test_a_reason_carries_its_proof(name: str, outcome: Outcomes) -> None:
    for row in outcome(name).run.report.layers:
        for reason in filter(None, (row.reason, row.eager.reason)):
            assert reason.evidence.keys() >= {"type", "shape", "dtype", "source", "bytes", "macs"}
            assert reason.remedy
            assert "/" not in str(reason.evidence["source"]).partition(":")[0]


@every_situation
def test_what_was_asked_and_what_ran_stand_beside_what_was_made(name: str, outcome: Outcomes) -> None:
    played = outcome(name)
    ran = [row.execution for row in played.run.report.layers if row.execution is not None]
    assert all(row.requested is not None and row.requested.quantized for row in played.run.report.layers)
    assert all(row.execution is None or row.execution.kernel == row.executed for row in played.run.report.layers)
    assert ran or not any(row.executed for row in played.run.report.layers)
    assert not ran or abs(sum(execution.share for execution in ran) - 1) < 0.02


@pytest.mark.parametrize("name", [name for name in SITUATIONS if name not in UNSEEN])
def test_the_verdict_is_what_quantize_dynamic_does(name: str, outcome: Outcomes) -> None:
    """By names, and by what the swapped model gives: with no reason against it, it runs, on int8, and is near float."""
    played = outcome(name)
    rows = {row.name.partition("#")[0]: row for row in played.run.report.layers}
    predicted = {name for name, row in rows.items() if row.eager.quantized}
    against = [row.eager.reason for row in rows.values() if row.eager.quantized and row.eager.reason is not None]
    messages = [row.eager.reason.message for row in rows.values() if row.eager.reason is not None]
    torch.manual_seed(0)
    model, example, keywords = played.situation.build().eval(), played.situation.example(), played.situation.keywords
    if any("fails for the whole model" in message for message in messages):
        with pytest.raises(AssertionError):
            torch.ao.quantization.quantize_dynamic(model)
        return
    if name in UNCOPIED:
        assert "parametrized" in {row.eager.reason.code for row in rows.values() if row.eager.reason is not None}
        with pytest.raises(RuntimeError, match="deepcopy"):
            torch.ao.quantization.quantize_dynamic(model)
        return
    swapped = torch.ao.quantization.quantize_dynamic(model)
    int8 = {
        path: child for path, child in swapped.named_modules() if "quantized.dynamic.modules" in type(child).__module__
    }
    called: set[str] = set()
    for path, child in int8.items():
        child.register_forward_hook(lambda *_, path=path: called.add(path))
    if not against and predicted:
        with torch.no_grad():
            result = primary(pytree.tree_leaves(swapped(*example, **keywords)))
        assert not result.numel() or sqnr_db(played.expected, result) > LEAST_EAGER_DB
        assert {name for name in called if name in rows} == predicted & set(int8)
    assert {path for path in int8 if path in rows and rows[path].type == "torch.nn.Linear"} >= {
        name for name in predicted if rows[name].type == "torch.nn.Linear" and name in int8
    }
    assert all(any(name == path or name.startswith(f"{path}.") for path in int8) for name in predicted)


def test_every_code_of_the_catalogue_that_a_graph_can_show_has_a_situation() -> None:
    shown = {situation.code for situation in SITUATIONS.values()}
    assert len(SITUATIONS) >= 75
    assert shown >= {
        "root-module", "functional", "param-3d", "computed-weight", "subclass", "lookalike", "not-linear-type", "mha",
        "fastpath", "unregistered", "alias", "script-child", "lazy", "plain-tensor", "shared", "tied", "type-dispatch",
        "weight-attr-read", "no-parameters", "signature", "state-lost", "hooks", "parametrized", "fx-fusion-bug",
        "dtype", "strides", "input-dtype", "shape", "nan-inf", "outlier", "numeric", "saturation", "autocast", "fusion",
        "trace-fail", "higher-order-op", "act-act", "decomposed", "not-lowered", "post-op", "unreached",
        "dynamic-shape", "config-precedence", "embedding-qconfig",
    }  # fmt: skip
