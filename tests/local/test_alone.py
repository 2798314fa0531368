"""The demo's judge: an artifact in an interpreter that knows only torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from local import digits
from local.alone import predictions


def test_an_exported_program_predicts_alone_what_the_module_predicts(tmp_path: Path) -> None:
    module = digits.Mlp().eval()
    path = digits.export_pt2(module, torch.rand(8, 8, 8), tmp_path / "model.pt2")
    x = torch.rand(70, 8, 8)
    assert predictions(path, x, batch=32, threads=1) == digits.predict(module, x, 32).tolist()


def test_a_torchscript_artifact_predicts_too(tmp_path: Path) -> None:
    class Signs(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.warns(DeprecationWarning, match="deprecated"):
        torch.jit.save(torch.jit.script(Signs()), tmp_path / "model.ts.pt")
    assert predictions(tmp_path / "model.ts.pt", torch.eye(3), batch=2, threads=1) == [0, 1, 2]


def test_an_artifact_that_does_not_run_alone_is_an_error_with_its_output(tmp_path: Path) -> None:
    (tmp_path / "model.ts.pt").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match=r"model\.ts\.pt does not run alone"):
        predictions(tmp_path / "model.ts.pt", torch.eye(3), batch=2, threads=1)
