"""A model of 1 GiB of weights: converting and verifying it stays under 1.6 times that, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fewbit import JobSpec
from fewbit.contract.report import Report, ReportModel
from workers.engine.task import Task

WIDTH, LAYERS = 4096, 16
LARGEST_SHARE = 1.6

STAGE = """
import sys, json
from pathlib import Path
from workers.engine import pipeline
from workers.engine.measurement.machine import peak_memory_bytes
from workers.engine.preload import preload
preload()
before = peak_memory_bytes()
getattr(pipeline, sys.argv[1])(Path(sys.argv[2]), lambda stage, share: None)
print(json.dumps(peak_memory_bytes() - before))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "model.pt2"
    module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(module, (torch.randn(2, WIDTH),), dynamic_shapes=({0: batch},)), path)
    assert path.stat().st_size >= 1 << 30
    return path


@pytest.mark.parametrize("method", ["dynamic", "weight_only"])
def test_a_large_model_is_quantized_within_its_memory(model: Path, method: str, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(model)
    np.savez(tmp_path / "evaluation.npz", x=np.random.default_rng(0).standard_normal((8, WIDTH)).astype(np.float32))
    Task(
        job="job_large",
        model=ReportModel(id="mdl_large", sha256="", format="pt2"),
        model_size=model.stat().st_size,
        spec=JobSpec.model_validate({"model": "mdl_large", "method": method, "evaluation": {"dataset": "dst_large"}}),
        evaluation="evaluation.npz",
        threads=2,
    ).write(tmp_path)
    weights = WIDTH * WIDTH * LAYERS * 4
    peaks = {stage: measure_peak(stage, tmp_path) / weights for stage in ("convert", "verify")}
    assert max(peaks.values()) < LARGEST_SHARE, peaks
    report = Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert all(row.quantized for row in report.layers)
    assert report.size.ratio is not None
    assert report.size.ratio < 0.26


def measure_peak(stage: str, folder: Path) -> int:
    """Bytes the process grew by at most, from when it was ready for work."""
    command = [sys.executable, "-W", "ignore", "-c", STAGE, stage, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[4])
    assert done.returncode == 0, done.stderr[-2000:]
    return int(json.loads(done.stdout.splitlines()[-1]))
