"""What the fork server does before the first job: import everything, and run every path once.

Always on one thread: a process that has run a second thread cannot be forked safely.
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import torch
from torch import nn

from fewbit.contract.report import ReportModel
from fewbit.contract.spec import JobSpec
from workers.engine.formats import inspect_upload
from workers.engine.imports import later_imports_tried
from workers.engine.pipeline import convert, verify
from workers.engine.task import Task


def preload() -> None:
    """Takes some seconds; afterwards a fork starts working at once."""
    torch.set_num_threads(1)
    batch = torch.export.Dim("batch", min=1, max=64)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    exported = torch.export.export(model, (torch.zeros(2, 8),), dynamic_shapes=({0: batch},))
    with later_imports_tried(), tempfile.TemporaryDirectory(prefix="fewbit-preload-") as name:
        folder = Path(name)
        with (folder / "model").open("wb") as file:
            torch.export.save(exported, file)
        inspect_upload(folder / "model", "pt2")
        Task(
            job="preload",
            model=ReportModel(id="preload", sha256="", format="pt2"),
            model_size=(folder / "model").stat().st_size,
            spec=JobSpec(model="preload"),
            threads=1,
        ).write(folder)
        convert(folder, _ignore)
        verify(folder, _ignore)
    gc.collect()
    gc.freeze()  # what is loaded by now stays: collecting in a fork skips torch's million objects


def _ignore(_stage: str, _share: float) -> None:
    """The warm-up reports no progress."""
