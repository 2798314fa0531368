"""``fewbit.runtime.load``: one ``.pt2`` on the int8 kernels of whatever machine it is loaded on."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fewbit.runtime
from fewbit import JobSpec
from fewbit.contract.report import ReportModel
from fewbit.runtime.kernels import LINEAR
from fewbit.runtime.model import reduced
from tests.workers.engine import models
from tests.workers.engine.runs import EngineRun, export, run_engine
from workers.engine.pipeline import convert
from workers.engine.task import Task

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export's own, about the models below

WITHOUT_VNNI = {"ATEN_CPU_CAPABILITY": "avx2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
ELSEWHERE = """
import sys, torch
import fewbit.runtime
from fewbit.runtime.kernels import has_vnni
assert not has_vnni()
x = torch.load("x.pt", weights_only=True)
with torch.no_grad():
    torch.save((fewbit.runtime.load(sys.argv[1])(x), torch.jit.load(sys.argv[2])(x)), "y.pt")
"""


class Keywords(nn.Module):
    """Nested arguments, one by name, one a constant; a tuple comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 4)

    def forward(self, pair: tuple[Tensor, Tensor], flag: bool, *, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.first(pair[0] + pair[1] if flag else pair[0]) * mask
        return x, [x + 1]


class SameSign(nn.Module):
    """Weights and inputs of one sign: the largest sums there can be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3)
        self.first = nn.Linear(16 * 36, 64)
        self.second = nn.Linear(64, 10)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 0.8, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(torch.relu(self.conv(x)).flatten(1))))


def sqnr_db(signal: Tensor, approximation: Tensor) -> float:
    return float(10 * torch.log10(signal.square().sum() / (signal - approximation).square().sum()))


def make(folder: Path, model: nn.Module, example: Tensor, **spec: object) -> EngineRun:
    torch.manual_seed(0)
    return run_engine(folder, model, (example,), threads=1, **spec)


@pytest.mark.parametrize("method", ["dynamic", "static", "weight_only"])
@pytest.mark.parametrize(
    ("model", "example"),
    [
        (models.Attention(), torch.randn(5, 4, 8)),
        (models.Functional(), torch.randn(3, 8)),
        (models.Mixed(), torch.zeros(3, 5, dtype=torch.long)),
        (models.small().bfloat16(), torch.randn(3, 8).bfloat16()),
    ],
    ids=["attention", "functional", "mixed", "bfloat16"],
)
def test_it_gives_what_the_torchscript_artifact_gives(
    method: str, model: nn.Module, example: Tensor, tmp_path: Path
) -> None:
    run = make(tmp_path, model, example, method=method)
    loaded = fewbit.runtime.load(run.artifact("model.pt2"))
    assert loaded.script is not None
    with torch.no_grad():
        assert torch.equal(loaded(example), torch.jit.load(run.artifact("model.ts.pt"))(example))


def test_the_layers_run_on_int8_kernels_and_the_record_names_them(tmp_path: Path) -> None:
    loaded = fewbit.runtime.load(make(tmp_path, models.mlp(), torch.randn(2, 64)).artifact("model.pt2"))
    assert loaded.script is not None
    assert loaded.script.code.count(LINEAR.partition("::")[2]) == 3
    assert [layer.name for layer in loaded.record.layers] == ["0", "2", "4"]


def test_it_is_called_like_the_float_model(tmp_path: Path) -> None:
    pair, mask = (torch.randn(2, 8), torch.randn(2, 8)), torch.ones(2, 4)
    exported = torch.export.export(Keywords().eval(), (pair, True), {"mask": mask})
    torch.export.save(exported, tmp_path / "model")
    run = job_of(tmp_path, tmp_path / "model")
    loaded = fewbit.runtime.load(run / "out" / "model.pt2")
    first, (second,) = loaded(pair, True, mask=mask)
    expected, _ = torch.export.load(run / "out" / "model.pt2").module()(pair, True, mask=mask)
    torch.testing.assert_close(first, expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(second, first + 1)
    with pytest.raises(TypeError, match="exported with the arguments"):
        loaded(pair[0], True, mask=mask)


def job_of(folder: Path, model: Path) -> Path:
    Task(
        job="job_test",
        model=ReportModel(id="mdl_test", sha256="", format="pt2"),
        model_size=model.stat().st_size,
        spec=JobSpec.model_validate({"model": "mdl_test", "artifacts": ["pt2"]}),
        threads=1,
    ).write(folder)
    convert(folder, lambda stage, share: None)
    return folder


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_a_model_made_for_vnni_does_not_saturate_without_it(method: str, tmp_path: Path) -> None:
    example = torch.rand(2, 16, 8, 8) * 0.2 + 0.8
    folder = job_of_target(tmp_path, example, method)
    torch.save(example, tmp_path / "x.pt")
    artifacts = [str(folder / "out" / name) for name in ("model.pt2", "model.ts.pt")]
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, *artifacts]
    environment = os.environ | WITHOUT_VNNI | {"PYTHONPATH": str(Path.cwd())}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    loaded, torchscript = torch.load(tmp_path / "y.pt", weights_only=True)
    with torch.no_grad():
        expected = torch.export.load(folder / "model").module()(example)
    assert sqnr_db(expected, torchscript) < 25, "this machine's kernels do not saturate: the test shows nothing"
    assert sqnr_db(expected, loaded) > 30


def job_of_target(folder: Path, example: Tensor, method: str) -> Path:
    """Converted, not verified: its TorchScript is for another machine than the one that will run it here."""
    torch.manual_seed(0)
    path = export(SameSign(), (example,), folder / "model")
    np.savez(folder / "data.npz", x=torch.rand(32, 16, 8, 8).numpy() * 0.2 + 0.8)
    spec = {"model": "mdl_test", "method": method, "target": "vnni",
            "calibration": {"dataset": "dst_x"}, "evaluation": {"dataset": "dst_x"}}  # fmt: skip
    Task(
        job="job_test",
        model=ReportModel(id="mdl_test", sha256="", format="pt2"),
        model_size=path.stat().st_size,
        spec=JobSpec.model_validate(spec),
        calibration="data.npz",
        evaluation="data.npz",
        threads=1,
    ).write(folder)
    convert(folder, lambda stage, share: None)
    return folder


def test_seven_bits_cover_the_same_ranges(tmp_path: Path) -> None:
    run = make(tmp_path, models.mlp(), torch.randn(2, 64), method="static", target="vnni", artifacts=["pt2"])
    record = fewbit.runtime.load(run.artifact("model.pt2")).record
    for before, after in zip(record.values, reduced(record).values, strict=True):
        low, high = (before.qmin - before.zero_point) * before.scale, (before.qmax - before.zero_point) * before.scale
        assert (after.qmin, after.qmax) == (0, 127)
        assert (after.qmin - after.zero_point) * after.scale == pytest.approx(low, abs=after.scale)
        assert (after.qmax - after.zero_point) * after.scale == pytest.approx(high, abs=after.scale)


def test_what_torchscript_cannot_express_runs_as_the_reference_with_a_warning(tmp_path: Path) -> None:
    x = torch.randn(3, 8)
    path = make(tmp_path, models.Conditional(), x, artifacts=["pt2"]).artifact("model.pt2")
    with pytest.warns(RuntimeWarning, match="float arithmetic.*cond"):
        loaded = fewbit.runtime.load(path)
    assert loaded.script is None
    with torch.no_grad():
        assert torch.equal(loaded(x), torch.export.load(path).module()(x))


def test_a_pt2_of_somebody_else_is_told_from_one_of_ours(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(models.small().eval(), (torch.randn(2, 8),)), tmp_path / "model.pt2")
    with pytest.raises(ValueError, match=r"model\.pt2 says nothing of quantized layers.*torch\.export\.load"):
        fewbit.runtime.load(tmp_path / "model.pt2")


def test_a_record_of_a_later_version_asks_for_an_update(tmp_path: Path) -> None:
    path = make(tmp_path, models.small(), torch.randn(2, 8), artifacts=["pt2"]).artifact("model.pt2")
    later = tmp_path / "later.pt2"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(later, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            changed = (
                content.replace(b'"version":1', b'"version":2') if entry.filename.endswith("fewbit.json") else content
            )
            target.writestr(entry.filename, changed)
    with pytest.raises(ValueError, match="update Fewbit"):
        fewbit.runtime.load(later)


def test_what_is_no_pt2_is_refused_before_torch_reads_it(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match=r"model\.pt2 is no \.pt2 file"):
        fewbit.runtime.load(tmp_path / "model.pt2")
    with pytest.raises(FileNotFoundError):
        fewbit.runtime.load(tmp_path / "missing.pt2")
