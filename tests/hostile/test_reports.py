"""Models that are taken, and mean harm to who reads the report: numbers that are none, names that are markup."""

from __future__ import annotations

import io
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.export import Dim

from fewbit.rendering.html.report_page import report_page
from fewbit.rendering.markdown import report_markdown
from fewbit.rendering.terminal import print_report
from tests.hostile.jobs import run_job
from tests.hostile.programs import named
from workers.sandbox.fork_server import ForkServer

HUGE = torch.finfo(torch.float32).max
VALUES = {
    "NaN": math.nan, "infinity": math.inf, "minus infinity": -math.inf, "the largest": HUGE, "tiny": 1e-45, "zero": 0.0,
}  # fmt: skip
NAMES = ("<img src=x onerror=alert(1)>", "</script><svg onload=alert(1)>", "[red]x[/]", "../../../etc/passwd", "a|b`c`")


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    server = ForkServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir(mode=0o700)
    return folder


def filled(path: Path, value: float) -> None:
    """Two linear layers, every weight and bias the same."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).eval()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    torch.export.save(torch.export.export(model, (torch.randn(2, 64),), dynamic_shapes=({0: Dim.AUTO},)), path)


@pytest.mark.parametrize("method", ["dynamic", "static", "weight_only"])
@pytest.mark.parametrize("value", VALUES)
def test_weights_that_are_not_finite_end_in_a_report(forks: ForkServer, folder: Path, value: str, method: str) -> None:
    filled(folder / "model", VALUES[value])
    report = run_job(forks, folder, method=method)
    if math.isfinite(VALUES[value]):
        assert all(layer.quantized for layer in report.layers)
    else:
        assert {layer.reason and layer.reason.code for layer in report.layers} == {"nan-inf"}
        assert not any(layer.quantized for layer in report.layers)
        assert "nan-inf" in {finding.code for finding in report.findings}
        assert report.verdict == "warn"


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_name_is_text_in_every_format(forks: ForkServer, folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "made").mkdir()
    shutil.copy(named(name)(tmp_path / "made", tmp_path / "canary"), folder / "model")
    report = run_job(forks, folder)
    assert name in {layer.name for layer in report.layers}
    outside_code = re.sub("`[^`]*`", "", report_markdown(report))  # where a renderer escapes by itself
    for tag in ("<img src", "<svg onload"):
        assert tag not in report_page(report)
        assert tag not in outside_code
    printed = Console(file=io.StringIO(), width=200, record=True)
    print_report(report, printed)
    assert name in printed.export_text()
    assert {path.parent for path in folder.rglob("*")} <= {folder, folder / "out"}
