"""Findings that come from numbers: a layer far from its float output, a slower artifact, sums that saturate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fewbit.contract.report import ArtifactLatency, Finding, Latency, Percentiles, Report
from tests.workers.engine.runs import EngineRun, run_engine
from workers.engine.reporting.findings import latency_findings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export's own


def found(report: Report, code: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.code == code]


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))


def job(folder: Path, **spec: object) -> EngineRun:
    folder.mkdir()
    rows = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    return run_engine(folder, perceptron(), (torch.randn(2, 32),), {"x": rows}, **spec)


def test_a_layer_that_clipping_ruins_is_named_and_its_patch_mends_it(tmp_path: Path) -> None:
    clipped = {"match": "2", "weights": {"range": {"clip": [-0.01, 0.01]}}}
    before = job(tmp_path / "before", layers=[clipped])
    (finding,) = found(before.report, "low-sqnr")
    assert (finding.layer, finding.severity) == ("2", "warning")
    own = before.layer("2").error
    assert own is not None
    assert f"{own.output_sqnr_db} dB" in finding.message
    assert finding.patch is not None
    after = job(tmp_path / "after", **finding.patch)
    assert found(after.report, "low-sqnr") == []
    assert after.report.accuracy is not None
    assert before.report.accuracy is not None
    assert after.report.accuracy.output.sqnr_db > before.report.accuracy.output.sqnr_db + 10


@pytest.mark.parametrize(("target", "saturates"), [("vnni", True), ("avx2", False), ("avx512", False), ("arm", True)])
def test_eight_bit_activations_are_a_note_where_another_cpu_would_saturate(
    tmp_path: Path, target: str, saturates: bool
) -> None:
    notes = found(job(tmp_path / target, target=target).report, "saturation")
    assert [finding.severity for finding in notes] == (["info"] if saturates else [])
    if saturates:
        assert notes[0].message.startswith("3 layers use all eight bits")


def test_an_artifact_slower_than_float_says_by_how_much(tmp_path: Path) -> None:
    """Rows of eight: rounding them is more work than multiplying them."""
    rows = np.random.default_rng(0).normal(size=(32, 4096, 8)).astype(np.float32)
    run = run_engine(tmp_path, nn.Sequential(nn.Linear(8, 8)), (torch.randn(2, 4096, 8),), {"x": rows}, threads=1)
    latency = run.report.latency
    assert latency is not None
    ratio = latency.artifacts["torchscript"].min / latency.before_ms.min
    assert ratio > 1
    (finding,) = found(run.report, "slower-than-float")
    assert f"takes {ratio:.2f} times as long as float" in finding.message
    assert finding.remedy


@pytest.mark.parametrize(
    ("float_ms", "int8_ms", "severities"),
    [(20.0, 25.0, ["warning"]), (2.0, 3.0, ["info"]), (20.0, 15.0, []), (20.0, 20.0, [])],
)
def test_slower_is_a_warning_only_where_a_batch_takes_long(
    float_ms: float, int8_ms: float, severities: list[str]
) -> None:
    latency = Latency(
        threads=1, batch=1, before_ms=Percentiles(min=float_ms, p50=float_ms, p95=float_ms),
        artifacts={"torchscript": ArtifactLatency(min=int8_ms, p50=int8_ms, p95=int8_ms, speedup=float_ms / int8_ms)},
    )  # fmt: skip
    assert [finding.severity for finding in latency_findings(latency)] == severities
