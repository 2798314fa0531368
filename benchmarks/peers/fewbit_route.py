"""Fewbit itself: the engine's two stages on the job spec one would post, then the TorchScript it delivers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import numpy as np
import torch

from benchmarks.peers.route import Route
from benchmarks.peers.source import CALIBRATION_BATCH, Array, Run, Source
from benchmarks.peers.torch_routes import torch_run
from benchmarks.peers.turns import THREADS
from fewbit.contract.report import ReportModel
from fewbit.contract.spec import JobSpec, ReportParts
from service.jobs.support import unsupported
from workers.engine.pipeline import convert, verify
from workers.engine.task import Task

ARTIFACT = "model.ts.pt"


class NotYet(Exception):
    """The gateway refuses this spec today. The engine alone would run it and leave the asked-for part out."""


def route(name: str, stem: str, **spec: Any) -> Route:
    return Route(name, f"{stem}.ts.pt", partial(_quantize, spec, stem), partial(_load, stem))


def upload_to_artifact(spec: dict[str, Any], source: Source, folder: Path) -> Callable[[], None]:
    """Ready to run: the upload to artifacts, the report off. No artifact is loaded again, none is measured. Raises
    ``NotYet``; the run ``EngineError``."""
    off = {name: "off" if name == "sensitivity" else False for name in ReportParts.model_fields}
    job = _job({**spec, "report": off}, source, folder, Path(mkdtemp(dir=folder)) / "job")
    return partial(convert, job, _ignore_progress)


def _quantize(spec: dict[str, Any], stem: str, source: Source, folder: Path) -> str:
    job = _job(
        {**spec, "evaluation": {"dataset": "bench", "batch_size": CALIBRATION_BATCH}}, source, folder, folder / stem
    )
    began = time.perf_counter()
    convert(job, _ignore_progress)
    converted = time.perf_counter() - began
    verify(job, _ignore_progress)
    shutil.copy(job / "out" / ARTIFACT, folder / f"{stem}.ts.pt")
    return f"convert {converted:.1f} s, the rest measures"


def _job(spec: dict[str, Any], source: Source, folder: Path, job: Path) -> Path:
    """A job's folder, filled. The float model is the ``float.pt2`` of ``folder``."""
    parsed = JobSpec.model_validate({"model": "bench", "artifacts": ["torchscript"], **spec})
    refused = [f"{error.pointer}: {error.message}" for error in unsupported(parsed)]
    if refused:
        raise NotYet(f"not yet: {refused[0]}")
    job.mkdir()
    shutil.copy(folder / "float.pt2", job / "model")
    _save_arrays(job / "calibration", source.named(source.calibration))
    _save_arrays(job / "evaluation", source.named(source.evaluation))
    Task(
        job="bench",
        model=ReportModel(id="bench", sha256="", format="pt2"),
        model_size=(job / "model").stat().st_size,
        spec=parsed,
        calibration="calibration" if parsed.calibration else None,
        evaluation="evaluation" if parsed.evaluation else None,
        threads=THREADS,
    ).write(job)
    return job


def _save_arrays(path: Path, arrays: dict[str, Array]) -> None:
    with path.open("wb") as file:
        np.savez(file, **cast(Any, arrays))


def _load(stem: str, _source: Source, folder: Path) -> Run:
    return torch_run(torch.jit.load(folder / f"{stem}.ts.pt"))  # type: ignore[no-untyped-call]


def _ignore_progress(_stage: str, _share: float) -> None:
    """Nobody follows a benchmark's progress."""
