"""A healthy model deserves no warning, and no layer of it a reason that is not true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.engine.reporting.healthy import MODELS, arrays
from tests.workers.engine.runs import run_engine

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

WAYS: dict[str, dict[str, Any]] = {
    "dynamic": {"artifacts": ["torchscript"]},
    "static": {"artifacts": ["torchscript"]},
    "weight_only": {"artifacts": ["pt2"]},
}
TRUE_OF_STOCK = {"not-linear-type", "embedding-qconfig", "mha", "fastpath", "lookalike", "root-module"}


def test_there_are_twenty() -> None:
    assert len(MODELS) >= 20


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_a_healthy_model_has_no_warning_and_no_false_reason(name: str, method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    data = arrays(inputs)
    report = run_engine(
        tmp_path, model.eval(), (), data, keywords=inputs, calibration=data if method == "static" else None, threads=1,
        method=method, **WAYS[method],
    ).report  # fmt: skip
    assert [finding for finding in report.findings if finding.severity != "info"] == []
    assert {row.name: row.reason for row in report.layers if row.reason is not None} == {}
    assert all(row.quantized for row in report.layers)
    against = {row.eager.reason.code for row in report.layers if row.eager.reason is not None}
    assert against <= TRUE_OF_STOCK
