"""Running the engine on a model, the way the worker does: a folder in, a folder out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit import JobSpec, Report
from fewbit.contract.report import LayerReport, ReportModel
from fewbit.contract.resources import ModelFormat
from workers.engine.graph.program import Program, load
from workers.engine.pipeline import convert, verify
from workers.engine.task import Task

BATCH = torch.export.Dim("batch", min=1, max=1024)


@dataclass(frozen=True)
class EngineRun:
    """What one job left behind."""

    folder: Path
    report: Report

    def layer(self, name: str) -> LayerReport:
        return next(row for row in self.report.layers if row.name == name)

    def artifact(self, name: str) -> Path:
        return self.folder / "out" / name


def export(
    model: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    dynamic: bool = True,
    keywords: Mapping[str, Tensor] | None = None,
    decompose: bool = False,
) -> Path:
    """Save ``model`` as a ``.pt2``; with ``decompose``, in core ATen operators."""
    keywords = dict(keywords or {})
    names = argument_names(model, example, keywords)
    shapes = {name: {0: BATCH} for name in names} if dynamic else None
    exported = torch.export.export(model.eval(), example, keywords, dynamic_shapes=shapes)
    torch.export.save(exported.run_decompositions() if decompose else exported, path)
    return path


def argument_names(model: nn.Module, example: tuple[Tensor, ...], keywords: Mapping[str, Tensor]) -> list[str]:
    """The names that the forward method gives these inputs, which are the program's."""
    return list(inspect.signature(model.forward).bind(*example, **keywords).arguments)


def load_exported(model: nn.Module, example: tuple[Tensor, ...], folder: Path, dynamic: bool = True) -> Program:
    return load(export(model, example, folder / "model.pt2", dynamic))


def run_engine(
    folder: Path,
    model: nn.Module,
    example: tuple[Tensor, ...],
    arrays: dict[str, Any] | None = None,
    dynamic: bool = True,
    *,
    keywords: Mapping[str, Tensor] | None = None,
    decompose: bool = False,
    calibration: dict[str, Any] | None = None,
    threads: int = 2,
    **spec: Any,
) -> EngineRun:
    """Export ``model``, quantize it, verify the artifacts, and read the report.

    ``arrays`` is the evaluation dataset, ``calibration`` the one that sets static ranges.
    """
    path = export(model, example, folder / "model.pt2", dynamic, keywords, decompose)
    return run_upload(folder, path, "pt2", arrays, calibration=calibration, threads=threads, **spec)


def run_upload(
    folder: Path,
    path: Path,
    format: ModelFormat,
    arrays: dict[str, Any] | None = None,
    *,
    calibration: dict[str, Any] | None = None,
    threads: int = 2,
    **spec: Any,
) -> EngineRun:
    """One job on the upload at ``path``, which lies in ``folder``."""
    if arrays is not None:
        np.savez(folder / "evaluation.npz", **arrays)
        spec["evaluation"] = {"dataset": "dst_test", **spec.get("evaluation", {})}
    if calibration is not None:
        np.savez(folder / "calibration.npz", **calibration)
        spec["calibration"] = {"dataset": "dst_calibration", **spec.get("calibration", {})}
    Task(
        job="job_test",
        model=ReportModel(id="mdl_test", sha256="", format=format),
        model_file=path.name,
        model_size=path.stat().st_size,
        spec=JobSpec.model_validate({"model": "mdl_test", **spec}),
        calibration="calibration.npz" if calibration is not None else None,
        evaluation="evaluation.npz" if arrays is not None else None,
        threads=threads,
    ).write(folder)
    convert(folder, lambda stage, share: None)
    verify(folder, lambda stage, share: None)
    return EngineRun(folder, Report.model_validate_json((folder / "report.json").read_bytes()))
