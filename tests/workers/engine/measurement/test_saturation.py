"""CPUs without VNNI sum pairs of u8*s8 products in int16. Here such a CPU is made by telling the kernels' libraries not
to use anything beyond AVX2; full-range activations then really saturate, and seven bits do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fewbit import JobSpec, Report
from fewbit.contract.report import ReportModel
from tests.workers.engine.runs import export
from workers.engine.pipeline import convert
from workers.engine.task import Task

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
STAGES = """
import sys
from pathlib import Path
from fewbit.runtime.kernels import has_vnni
from workers.engine import pipeline
assert not has_vnni()
for stage in sys.argv[2:]:
    getattr(pipeline, stage)(Path(sys.argv[1]), lambda stage, share: None)
"""


class SameSign(nn.Module):
    """Weights and inputs of one sign: the largest sums there can be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 32, 3)
        self.first = nn.Linear(32 * 36, 64)
        self.second = nn.Linear(64, 10)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 0.8, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(torch.relu(self.conv(x)).flatten(1))))


def task(folder: Path, **spec: object) -> None:
    torch.manual_seed(0)
    path = export(SameSign(), (torch.rand(2, 32, 8, 8),), folder / "model")
    data = np.random.default_rng(0).uniform(0.8, 1.0, (64, 32, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=data)
    datasets = {"evaluation": {"dataset": "dst_x"}, "calibration": {"dataset": "dst_x"}}
    Task(
        job="job_test",
        model=ReportModel(id="mdl_test", sha256="", format="pt2"),
        model_size=path.stat().st_size,
        spec=JobSpec.model_validate({"model": "mdl_test", **datasets, **spec}),
        evaluation="data.npz",
        calibration="data.npz",
        threads=1,
    ).write(folder)


def without_vnni(folder: Path, *stages: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", STAGES, str(folder), *stages]
    root = Path(__file__).parents[4]
    return subprocess.run(command, env={**os.environ, **AVX2}, capture_output=True, text=True, check=False, cwd=root)


def require_no_saturation(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr[-2000:]
    report = Report.model_validate_json((folder / "report.json").read_bytes())
    assert all(row.quantized for row in report.layers)
    assert any(row.scheme and row.scheme.activations and row.scheme.activations.reduce_range for row in report.layers)
    decibels = {artifact.kind: artifact.output.sqnr_db for artifact in report.artifacts if artifact.output}
    assert decibels["torchscript"] >= decibels["pt2"] - 1, "the lowered artifact against the reference graph"
    assert decibels["pt2"] > 25


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_a_worker_without_vnni_keeps_to_seven_bits(method: str, tmp_path: Path) -> None:
    task(tmp_path, method=method)
    require_no_saturation(tmp_path, without_vnni(tmp_path, "convert", "verify"))


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_any_worker_quantizes_for_a_target_without_vnni(method: str, tmp_path: Path) -> None:
    task(tmp_path, method=method, target="avx2")
    convert(tmp_path, lambda stage, share: None)
    require_no_saturation(tmp_path, without_vnni(tmp_path, "verify"))


def test_full_range_for_the_wrong_cpu_is_not_delivered(tmp_path: Path) -> None:
    """Which also shows that the CPU made here saturates. The portable .pt2 computes in float, and is delivered."""
    task(tmp_path, method="static", target="vnni")
    done = without_vnni(tmp_path, "convert", "verify")
    assert done.returncode == 0, done.stderr[-2000:]
    report = Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert [artifact.kind for artifact in report.artifacts] == ["pt2"]
    assert not (tmp_path / "out" / "model.ts.pt").exists()
    assert any(
        finding.code == "artifact-not-written" and "model.ts.pt" in finding.message for finding in report.findings
    )


def test_a_job_of_which_nothing_is_right_fails(tmp_path: Path) -> None:
    task(tmp_path, method="static", target="vnni", artifacts=["torchscript"])
    done = without_vnni(tmp_path, "convert", "verify")
    assert done.returncode != 0
    assert "verification-failed" in done.stderr
