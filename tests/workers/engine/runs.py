"""Running the engine on a model, the way the worker does: a folder in, a folder out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit import JobSpec, Report
from fewbit.report import LayerReport, ReportModel
from workers.engine.pipeline import convert, verify
from workers.engine.program import Program, load
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


def export(model: nn.Module, example: tuple[Tensor, ...], path: Path, dynamic: bool = True) -> Path:
    shapes = tuple({0: BATCH} for _ in example) if dynamic else None
    torch.export.save(torch.export.export(model.eval(), example, dynamic_shapes=shapes), path)
    return path


def load_exported(model: nn.Module, example: tuple[Tensor, ...], folder: Path, dynamic: bool = True) -> Program:
    return load(export(model, example, folder / "model.pt2", dynamic))


def run_engine(
    folder: Path,
    model: nn.Module,
    example: tuple[Tensor, ...],
    arrays: dict[str, Any] | None = None,
    dynamic: bool = True,
    **spec: Any,
) -> EngineRun:
    """Export ``model``, quantize it, verify the artifacts, and read the report."""
    path = export(model, example, folder / "model.pt2", dynamic)
    if arrays is not None:
        np.savez(folder / "evaluation.npz", **arrays)
        spec["evaluation"] = {"dataset": "dst_test", **spec.get("evaluation", {})}
    Task(
        job="job_test",
        model=ReportModel(id="mdl_test", sha256="", format="pt2"),
        model_file=path.name,
        model_size=path.stat().st_size,
        spec=JobSpec.model_validate({"model": "mdl_test", **spec}),
        evaluation="evaluation.npz" if arrays is not None else None,
        threads=2,
    ).write(folder)
    convert(folder, lambda stage, share: None)
    verify(folder, lambda stage, share: None)
    return EngineRun(folder, Report.model_validate_json((folder / "report.json").read_bytes()))
