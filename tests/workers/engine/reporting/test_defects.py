"""Defects planted in a model of twelve layers: each is named by its layer, and its patch, posted back, mends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewbit.contract.report import Finding, Report
from tests.workers.engine.runs import run_engine

pytestmark = [  # torch's own, about the models
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

X = np.random.default_rng(0).normal(size=(128, 32)).astype(np.float32)
X[:, 0] = X[:, 0].clip(-1.4, 1.4)
X[64:80, 0] = 1.6  # these take the other branch, which calibration never sees


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return out


class Twelve(nn.Module):
    """Twelve linears: an input, four blocks of two, two branches, an output."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(32, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(Block(width) for _ in range(4))
        self.rare, self.usual = nn.Linear(width, width), nn.Linear(width, width)
        self.rare.weight.data *= 10  # so that its error is seen in the output

    def forward(self, x: Tensor) -> Tensor:
        y = self.inp(x)
        for block in self.blocks:
            y = block(y)
        y = y + torch.cond(x[0, 0] > 1.5, lambda y: self.rare(y), lambda y: self.usual(y), (y,))  # noqa: PLW0108
        out: Tensor = self.out(y)
        return out


def _block(model: Twelve, index: int) -> Block:
    block = model.blocks[index]
    assert isinstance(block, Block)
    return block


def outlier(model: Twelve) -> None:
    _block(model, 0).down.weight.data[3, 5] *= 1000


def tiny(model: Twelve) -> None:
    layer = _block(model, 1).up
    layer.weight.data *= 1e-8 / layer.weight.abs().max()
    layer.bias.data.zero_()  # else the layer gives its bias, exactly, whatever its weights are


def loud(model: Twelve) -> None:
    _block(model, 2).norm.weight.data[7] *= 50


def nan(model: Twelve) -> None:
    _block(model, 3).up.weight.data[1, 1] = float("nan")


def tie_weights(model: Twelve) -> None:
    _block(model, 2).down.weight = _block(model, 1).down.weight


def leave_untouched(_: Twelve) -> None:
    """The branch that calibration never takes is there in every model."""


PLANTED: dict[str, tuple[Callable[[Twelve], None], str]] = {
    "outlier": (outlier, "blocks.0.down"),
    "numeric": (tiny, "blocks.1.up"),
    "activation-outlier": (loud, "blocks.2.up"),
    "nan-inf": (nan, "blocks.3.up"),
    "not-calibrated": (leave_untouched, "rare"),
    "tied": (tie_weights, "blocks.2.down"),
}


def report_on(folder: Path, *plants: Callable[[Twelve], None], calibrated: int = 64, **spec: Any) -> Report:
    """The first ``calibrated`` samples fix the ranges; 64 of them never take the other branch."""
    torch.manual_seed(0)
    model = Twelve()
    for plant in plants:
        plant(model)
    folder.mkdir()
    on_evaluation = spec.pop("calibration", {}).get("dataset") == "dst_test"
    data = X if on_evaluation else X[:calibrated]
    asked: dict[str, Any] = {"method": "static", "artifacts": ["pt2"], "evaluation": {"batch_size": 16}} | spec
    return run_engine(folder, model, (torch.randn(4, 32),), {"x": X}, calibration={"x": data}, **asked).report


def found(report: Report, code: str, layer: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.code == code and finding.layer == layer]


def merge_patch(document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7396."""
    result = dict(document)
    for key, value in patch.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge_patch(result[key], value) if both else value
    return result


def _error(report: Report, layer: str) -> tuple[float, float]:
    """How close the model's output is, then the layer's own."""
    assert report.accuracy is not None
    row = next(row for row in report.layers if row.name == layer)
    own = row.error.output_sqnr_db if row.error else None
    return report.accuracy.output.sqnr_db, own if own is not None else -150.0


def test_all_defects_of_one_model_are_named_in_one_report(tmp_path: Path) -> None:
    report = report_on(tmp_path / "all", *(plant for plant, _ in PLANTED.values()))
    for code, (_, layer) in PLANTED.items():
        assert len(found(report, code, layer)) == 1, f"{code} at {layer}"


@pytest.mark.parametrize("code", PLANTED)
def test_the_patch_of_a_finding_posted_back_mends_it(code: str, tmp_path: Path) -> None:
    plant, layer = PLANTED[code]
    calibrated = 64 if code == "not-calibrated" else len(X)
    before = report_on(tmp_path / "before", plant, calibrated=calibrated)
    (finding,) = found(before, code, layer)
    assert finding.patch is not None
    after = report_on(tmp_path / "after", plant, calibrated=calibrated, **merge_patch({}, finding.patch))
    assert not found(after, code, layer)
    assert _error(after, layer)[0] >= _error(before, layer)[0] - 0.05
    assert max(now - then for now, then in zip(_error(after, layer), _error(before, layer), strict=True)) > 0.1


def test_the_report_s_own_patch_mends_all_warnings_at_once(tmp_path: Path) -> None:
    plants = [PLANTED[code][0] for code in ("outlier", "numeric", "activation-outlier", "nan-inf", "not-calibrated")]
    before = report_on(tmp_path / "before", *plants)
    assert before.patch is not None
    after = report_on(tmp_path / "after", *plants, **merge_patch({}, before.patch))
    assert not [finding.code for finding in after.findings if finding.severity != "info"]
    assert after.verdict == "pass"


@pytest.mark.parametrize("method", ["dynamic", "static", "weight_only"])
def test_a_healthy_model_has_no_defect(method: str, tmp_path: Path) -> None:
    healthy = X.copy()
    healthy[:, 0] = np.linspace(-2, 2, len(X))
    torch.manual_seed(0)
    report = run_engine(tmp_path, Twelve(), (torch.randn(4, 32),), {"x": healthy},
                        calibration={"x": healthy[::-1].copy()}, method=method, artifacts=["pt2"]).report  # fmt: skip
    assert [finding.code for finding in report.findings if finding.severity != "info"] == []


def test_rules_already_in_the_spec_stay_in_the_patch(tmp_path: Path) -> None:
    rules = [{"match": "inp", "quantize": False}]
    report = report_on(tmp_path / "job", tiny, layers=rules)
    (finding,) = found(report, "numeric", "blocks.1.up")
    assert finding.patch == {"layers": [*rules, {"match": "blocks.1.up", "quantize": False}]}
