"""Running a small program through the engine, and what its artifacts give in truth."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import fewbit.runtime
from tests.workers.engine.programs.program import SmallProgram
from tests.workers.engine.runs import BATCH, EngineRun, run_upload

BARE = {"latency": False, "sensitivity": "off", "saturation": False}  # what takes long, and decides nothing
APART_DB = 3.0
KINDS = ("torchscript", "pt2", "onnx", "safetensors")


@dataclass(frozen=True)
class Truth:
    """``sqnr_db``: by loader, of the first call on inputs that the job never saw in this order."""

    run: EngineRun
    sqnr_db: dict[str, float]


def run_program(program: SmallProgram, folder: Path, kinds: tuple[str, ...] = KINDS, **spec: Any) -> Truth:
    """One job on the program, its example as data; then each artifact against the module itself."""
    torch.manual_seed(0)
    module, example = program.build().eval(), program.example()
    path = save(program, module, example, folder / "model.pt2")
    names = list(inspect.signature(module.forward).parameters)
    arrays = {name: value.numpy() for name, value in zip(names, example, strict=True)}
    spec = {"report": BARE, "smooth": program.smooth, **spec}
    if spec.get("method") == "static":
        spec["calibration_arrays"] = arrays
    calibration = spec.pop("calibration_arrays", None)
    run = run_upload(folder, path, "pt2", arrays, calibration=calibration, artifacts=list(kinds), **spec)
    return Truth(run, truth(module, run, example))


def require_right(program: SmallProgram, found: Truth) -> None:
    """Every kind is delivered and right, or says why it has no form."""
    report = found.run.report
    delivered = {artifact.kind: artifact for artifact in report.artifacts}
    said = " ".join(finding.message for finding in report.findings if finding.code == "artifact-not-written")
    assert set(KINDS) - set(delivered) == set(program.missing), said
    assert all(reason in said for reason in program.missing.values()), said
    if program.random:
        assert [finding.code for finding in report.findings if finding.severity != "info"] == ["random-in-forward"]
        assert all(artifact.output is None and not artifact.loaders for artifact in report.artifacts)
        return
    told = {name: output.sqnr_db for artifact in report.artifacts for name, output in artifact.loaders.items()}
    assert set(told) == set(found.sqnr_db)
    for loader, sqnr in found.sqnr_db.items():
        assert sqnr >= program.least_db, (loader, sqnr, told[loader])
        assert sqnr >= told[loader] - APART_DB, (loader, sqnr, told[loader])


def save(program: SmallProgram, module: torch.nn.Module, example: tuple[Tensor, ...], path: Path) -> Path:
    names = inspect.signature(module.forward).parameters
    free = names if program.free is None else program.free
    shapes = {name: {0: BATCH} if name in free else None for name in names}
    exported = torch.export.export(copy.deepcopy(module), copy.deepcopy(example), dynamic_shapes=shapes, strict=False)
    torch.export.save(exported.run_decompositions() if program.decompose else exported, path)
    return path


def truth(module: torch.nn.Module, run: EngineRun, example: tuple[Tensor, ...]) -> dict[str, float]:
    """By loader, the worse of two calls in a row: what a program keeps must be kept."""
    module = copy.deepcopy(module)
    wanted = [results_of(module, example) for _ in range(2)]
    delivered = {artifact.kind for artifact in run.report.artifacts}
    found = {}
    for loader, (kind, load) in LOADERS.items():
        if kind in delivered:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = load(run)
                given = [results_of(model, example) for _ in range(2)]
            pairs = [pair for call in zip(wanted, given, strict=True) for pair in zip(*call, strict=True)]
            found[loader] = min(sqnr_db(*pair) for pair in pairs)
    return found


def results_of(model: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [result.clone() for result in pytree.tree_leaves(model(*copy.deepcopy(inputs)))]


def torchscript(run: EngineRun) -> Callable[..., Any]:
    return torch.jit.load(run.artifact("model.ts.pt"))


def pt2(run: EngineRun) -> Callable[..., Any]:
    return torch.export.load(run.artifact("model.pt2")).module()


def runtime(run: EngineRun) -> Callable[..., Any]:
    return fewbit.runtime.load(run.artifact("model.pt2"))


def onnx(run: EngineRun) -> Callable[..., Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(run.artifact("model.onnx"), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def call(*inputs: Tensor) -> list[Tensor]:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(np.asarray(result)) for result in session.run(None, given)]

    return call


LOADERS = {
    "torch.jit.load": ("torchscript", torchscript),
    "torch.export.load": ("pt2", pt2),
    "fewbit.runtime.load": ("pt2", runtime),
    "onnxruntime": ("onnx", onnx),
}


def sqnr_db(signal: Tensor, approximation: Tensor) -> float:
    if signal.shape != approximation.shape:
        return float("-inf")
    noise = (signal.double() - approximation.double()).square().sum()
    return float(10 * torch.log10(signal.double().square().sum() / noise.clamp_min(1e-30)))
