"""Engine time of a dynamic job, against the bare quantize_dynamic call plus the same evaluation passes."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.models import Encoder, export, mlp_module, samples, sentences
from benchmarks.result import Result
from fewbit.contract.report import ReportModel
from fewbit.contract.spec import JobSpec, ReportParts
from workers.engine.pipeline import convert, verify
from workers.engine.preload import preload
from workers.engine.task import Task

ROUNDS = 5
BATCH = 32
THREADS = 2


def run() -> Iterator[Result]:
    warnings.simplefilter("ignore")
    preload()
    torch.set_num_threads(THREADS)
    torch.backends.mha.set_fastpath_enabled(False)  # quantize_dynamic breaks on it
    with tempfile.TemporaryDirectory(prefix="fewbit-bench-") as name:
        folder = Path(name)
        yield _compare("MLP, 500 samples", mlp_module(), samples(folder / "mlp.npz"), folder)
        yield _compare("encoder of 6 x 384, 64 x 64 tokens", Encoder().eval(), sentences(folder / "text.npz"), folder)
        yield _report_cost(Encoder().eval(), sentences(folder / "cost.npz"), folder)


def _compare(label: str, module: nn.Module, data: Path, folder: Path) -> Result:
    inputs = torch.from_numpy(np.load(data)["x"])
    model = export(module, inputs[:2], folder / f"{data.stem}.pt2")
    pairs = [(_engine(model, data, folder / f"{data.stem}-{index}"), _bare(module, inputs)) for index in range(ROUNDS)]
    ours, peers = (statistics.median(pair) for pair in zip(*pairs, strict=True))
    return Result(f"engine: {label}", f"{ours:.2f} s", "quantize_dynamic + 2 passes", f"{peers:.2f} s", ours / peers)


def _report_cost(module: nn.Module, data: Path, folder: Path) -> Result:
    """The whole report against the same job without any part of it: quantize, write, verify, two evaluations."""
    model = export(module, torch.from_numpy(np.load(data)["x"])[:2], folder / "cost.pt2")
    off = {name: "off" if name == "sensitivity" else False for name in ReportParts.model_fields}
    pairs = [
        (_engine(model, data, folder / f"whole-{index}"), _engine(model, data, folder / f"bare-{index}", off))
        for index in range(ROUNDS)
    ]
    whole, bare = (statistics.median(pair) for pair in zip(*pairs, strict=True))
    return Result("whole report, encoder of 6 x 384", f"{whole:.2f} s", "the bare job", f"{bare:.2f} s", whole / bare,
                  at_most=3.0)  # fmt: skip


def _engine(model: Path, data: Path, folder: Path, report: dict[str, object] | None = None) -> float:
    """Both processes' stages: everything of a job but the service around it."""
    folder.mkdir()
    (folder / "model").write_bytes(model.read_bytes())
    (folder / "evaluation").write_bytes(data.read_bytes())
    Task(
        job="bench",
        model=ReportModel(id="bench", sha256="", format="pt2"),
        model_size=model.stat().st_size,
        spec=JobSpec.model_validate(
            {"model": "bench", "evaluation": {"dataset": "bench", "batch_size": BATCH}, "report": report or {}}
        ),
        evaluation="evaluation",
        threads=THREADS,
    ).write(folder)
    began = time.perf_counter()
    convert(folder, _ignore_progress)
    verify(folder, _ignore_progress)
    return time.perf_counter() - began


def _ignore_progress(_stage: str, _share: float) -> None:
    """Nobody follows a benchmark's progress."""


def _bare(module: nn.Module, inputs: torch.Tensor) -> float:
    began = time.perf_counter()
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(module))
    with torch.no_grad():
        for variant in (module, quantized):
            for part in inputs.split(BATCH):
                variant(part)
    return time.perf_counter() - began
