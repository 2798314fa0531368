"""What layers read, what their integers do on other CPUs, and what the calibration data is like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewbit.contract.report import Report
from tests.workers.engine.runs import run_engine

RANDOM = np.random.default_rng(0)


class Two(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 48), nn.Linear(48, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


def report_on(folder: Path, x: np.ndarray, calibration: np.ndarray | None = None, **spec: object) -> Report:  # type: ignore[type-arg]
    torch.manual_seed(0)
    given = {"x": calibration} if calibration is not None else None
    return run_engine(folder, Two(x.shape[1]), (torch.randn(2, x.shape[1]),), {"x": x}, calibration=given,
                      artifacts=["pt2"], **spec).report  # fmt: skip


def test_ranges_percentiles_and_loud_channels_are_those_of_the_data(tmp_path: Path) -> None:
    x = RANDOM.normal(size=(200, 32)).astype(np.float32)
    x[:, 5] *= 50
    seen = report_on(tmp_path, x).layers[0].activations
    assert seen is not None
    assert (seen.min, seen.max) == (float(x.min()), float(x.max()))
    assert seen.percentiles["50"] == pytest.approx(np.percentile(x, 50), abs=0.1)
    assert seen.percentiles["99"] == pytest.approx(np.percentile(x, 99), rel=0.1)
    assert seen.std == pytest.approx(float(x.std()), rel=0.01)
    assert [outlier.channel for outlier in seen.outlier_channels] == [5]
    assert seen.outlier_channels[0].max_abs == float(np.abs(x[:, 5]).max())
    assert sum(seen.histogram.counts) == x.size


def test_drift_is_seen_where_evaluation_differs_from_calibration(tmp_path: Path) -> None:
    calibration = RANDOM.normal(size=(128, 32)).astype(np.float32)
    same, other = RANDOM.normal(size=(2, 128, 32)).astype(np.float32)
    reports = {}
    for name, x in (("same", same), ("other", 3 * other + 4)):
        (tmp_path / name).mkdir()
        reports[name] = report_on(tmp_path / name, x, calibration, method="static")
    drifts = {name: report.layers[0].activations for name, report in reports.items()}
    assert drifts["same"] is not None
    assert drifts["same"].drift is not None
    assert drifts["same"].drift < 0.05
    assert drifts["other"] is not None
    assert drifts["other"].drift is not None
    assert drifts["other"].drift > 0.5
    assert "calibration-drift" in {finding.code for finding in reports["other"].findings}
    assert "calibration-drift" not in {finding.code for finding in reports["same"].findings}


class Summing(nn.Module):
    """All weights are equal and positive: pairs of large activations overflow sixteen bits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 16, bias=False)
        nn.init.constant_(self.layer.weight, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def test_eight_bits_saturate_without_vnni_and_seven_do_not(tmp_path: Path) -> None:
    x = np.abs(RANDOM.normal(size=(64, 64))).astype(np.float32) + 1
    seen = {}
    for target in ("vnni", "avx2"):
        (tmp_path / target).mkdir()
        report = run_engine(tmp_path / target, Summing(), (torch.randn(2, 64),), {"x": x}, target=target,
                            artifacts=["pt2"]).report  # fmt: skip
        seen[target] = report.layers[0].saturation
    eight, seven = seen["vnni"], seen["avx2"]
    assert eight is not None
    assert seven is not None
    assert eight["avx2"].saturated_ratio == eight["avx512"].saturated_ratio > 0.5
    assert eight["avx2"].output_sqnr_db < 15
    assert eight["vnni"].output_sqnr_db > 35
    assert eight["vnni"].saturated_ratio == 0
    assert seven["avx2"].saturated_ratio == 0
    assert seven["avx2"].output_sqnr_db > 35


def test_the_simulated_sums_are_those_of_the_report_s_own_error(tmp_path: Path) -> None:
    """Without clamping they are the layer's integers: as far from float as its own output is."""
    x = RANDOM.normal(size=(64, 32)).astype(np.float32)
    for row in report_on(tmp_path, x).layers:
        assert row.saturation is not None
        assert row.error is not None
        assert row.error.output_sqnr_db is not None
        assert row.saturation["vnni"].output_sqnr_db == pytest.approx(row.error.output_sqnr_db, abs=2)


def test_the_calibration_set_is_looked_at(tmp_path: Path) -> None:
    x = RANDOM.normal(size=(64, 32)).astype(np.float32)
    calibration = np.concatenate([x[:32]] * 4)
    report = report_on(tmp_path, x, calibration, method="static")
    data = report.calibration
    assert data is not None
    assert data.samples == 128
    assert data.duplicates == 96
    assert "duplicate-samples" in {finding.code for finding in report.findings}
    assert [step.samples for step in data.convergence] == [1, 2, 4, 8, 16, 32, 64, 128]
    shares = [step.range_share for step in data.convergence]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert data.recommended_samples is not None
    assert data.recommended_samples <= 128


def test_constant_and_broken_inputs_are_named(tmp_path: Path) -> None:
    x = RANDOM.normal(size=(64, 32)).astype(np.float32)
    (tmp_path / "constant").mkdir()
    constant = report_on(tmp_path / "constant", x, np.ones_like(x), method="static")
    assert constant.calibration is not None
    assert constant.calibration.constant_inputs == ("x",)
    assert "constant-input" in {finding.code for finding in constant.findings}
    broken = x.copy()
    broken[3, 3] = np.nan
    (tmp_path / "broken").mkdir()
    nan = report_on(tmp_path / "broken", x, broken, method="static")
    assert nan.calibration is not None
    assert nan.calibration.non_finite_inputs == ("x",)
    assert "non-finite-input" in {finding.code for finding in nan.findings}


def test_four_samples_are_too_few(tmp_path: Path) -> None:
    x = RANDOM.normal(size=(64, 32)).astype(np.float32)
    report = report_on(tmp_path, x, x[:4], method="static")
    (finding,) = (finding for finding in report.findings if finding.code == "calibration-too-small")
    assert finding.severity == "warning"
