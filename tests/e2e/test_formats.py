"""Every kind of upload through the running service, each with another method, and a downloaded artifact that runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fewbit import Report
from fewbit.client import Client
from fewbit.errors import FewbitError
from local import digits
from tests.workers import packed

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


def images(path: Path, count: int) -> Path:
    data = digits.load_digits()
    np.savez(path, input=data.x_train[:count].flatten(1).numpy(), labels=data.labels_train[:count].numpy())
    return path


def trained() -> nn.Module:
    """A stock module, trained on real digits."""
    torch.manual_seed(0)
    data = digits.load_digits()
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.x_train.flatten(1)), data.labels_train).backward()
        optimizer.step()
    return model.eval()


def job(client: Client, model: Path, **spec: object) -> Report:
    uploaded = client.upload_model(model)
    return client.report(client.wait(client.create_job({"model": uploaded.id, **spec})))


def test_a_transformers_folder_needs_nothing_but_itself(client: Client, tmp_path: Path) -> None:
    folder = packed.zipped(packed.tiny_folder(tmp_path), tmp_path / "model.zip")
    report = job(client, folder, artifacts=["torchscript", "pt2"])
    assert report.model.format == "transformers"
    assert report.coverage.layers.quantized == report.coverage.layers.total > 5
    path = client.download(report.job, "model.ts.pt", tmp_path / "model.ts.pt")
    ids = torch.ones(3, 12, dtype=torch.long)
    outputs = torch.jit.load(path)(input_ids=ids, attention_mask=ids)
    assert outputs["last_hidden_state"].shape == (3, 12, 32)


def test_a_saved_module_is_quantized_static_on_its_own_data(client: Client, tmp_path: Path) -> None:
    data = {
        "calibration": {"dataset": client.upload_dataset(images(tmp_path / "calibration.npz", 128)).id},
        "evaluation": {"dataset": client.upload_dataset(images(tmp_path / "evaluation.npz", 512)).id},
    }
    report = job(client, packed.saved(trained(), tmp_path / "module.pt"), method="static", **data)
    assert report.model.format == "module"
    assert report.layers[0].executed == "quantized::linear_relu"
    assert report.accuracy is not None
    assert report.accuracy.metrics[0].before > 0.9
    assert abs(report.accuracy.metrics[0].delta) <= 0.005
    path = client.download(report.job, "model.ts.pt", tmp_path / "model.ts.pt")
    assert torch.jit.load(path)(torch.rand(7, 64)).shape == (7, 10)


def test_torchscript_is_quantized_to_int4(client: Client, tmp_path: Path) -> None:
    script = packed.traced(trained(), tmp_path / "script.pt", torch.rand(2, 64))
    evaluation = {"dataset": client.upload_dataset(images(tmp_path / "evaluation.npz", 512)).id}
    weights = {"dtype": "int4", "granularity": "per_group", "group_size": 32}
    report = job(client, script, method="weight_only", weights=weights, evaluation=evaluation)
    assert report.model.format == "torchscript"
    assert {row.scheme.weights.dtype for row in report.layers if row.scheme} == {"int4"}
    assert report.size.ratio is not None
    assert report.size.ratio < 0.3


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_a_saved_module_without_data_is_refused_with_what_to_send(client: Client, tmp_path: Path, method: str) -> None:
    model = client.upload_model(packed.saved(trained(), tmp_path / "module.pt"))
    with pytest.raises(FewbitError, match="POST /datasets"):
        client.create_job({"model": model.id, "method": method})


def test_eager_does_what_torch_ao_does_and_reports_on_it(client: Client, tmp_path: Path) -> None:
    evaluation = {"dataset": client.upload_dataset(images(tmp_path / "evaluation.npz", 512)).id}
    report = job(client, packed.saved(trained(), tmp_path / "module.pt"), backend="eager", evaluation=evaluation)
    assert [artifact.kind for artifact in report.artifacts] == ["torchscript"]
    assert {row.executed for row in report.layers} == {"quantized::linear_dynamic"}
    assert {row.scheme.weights.granularity for row in report.layers if row.scheme} == {"per_tensor"}
