"""The safetensors artifact: the same weights as the reference's, and a file that says how to get them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from tests.workers.engine import models
from tests.workers.engine.runs import EngineRun, run_engine
from workers.engine.artifacts.safetensors import Manifest, check_safetensors

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export's own, about the models below

GROUPS_OF_32 = {"dtype": "int4", "granularity": "per_group", "group_size": 32}


def stored(run: EngineRun) -> tuple[Manifest, dict[str, np.ndarray]]:
    path = run.artifact("model.safetensors")
    with safe_open(path, framework="np") as file:
        manifest = Manifest.model_validate_json(file.metadata()["fewbit"])
    return manifest, load_file(path)


def make(folder: Path, model: nn.Module, example: Tensor, **spec: object) -> EngineRun:
    return run_engine(folder, model, (example,), artifacts=["safetensors"], threads=1, **spec)


def test_every_quantized_layer_is_there_by_name_and_the_rest_in_float(tmp_path: Path) -> None:
    model = models.small()
    manifest, tensors = stored(make(tmp_path, model, torch.randn(2, 8)))
    assert list(manifest.layers) == ["0", "3"]
    assert set(manifest.floats) == {"0.bias", "3.bias", "2.weight", "2.bias"}
    for name in manifest.floats:
        np.testing.assert_array_equal(tensors[name], model.state_dict()[name].numpy())
    for name in manifest.layers:
        weight = (tensors[f"{name}.weight"] - tensors[f"{name}.weight.zero_point"]) * tensors[f"{name}.weight.scale"]
        step = tensors[f"{name}.weight.scale"]
        assert (np.abs(weight - model.state_dict()[f"{name}.weight"].numpy()) <= step / 2 + 1e-7).all()


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (models.Functional(), torch.randn(3, 8)),
        (models.Kinds(), torch.randn(3, 8)),
        (models.Mixed(), torch.zeros(3, 5, dtype=torch.long)),
        (models.Tied(), torch.zeros(3, 5, dtype=torch.long)),
        (models.small().bfloat16(), torch.randn(3, 8).bfloat16()),
        (nn.Linear(8, 4), torch.randn(3, 8)),
    ],
    ids=["functional", "kinds", "mixed", "tied", "bfloat16", "root"],
)
def test_each_weight_is_rebuilt_to_the_bit(model: nn.Module, example: Tensor, tmp_path: Path) -> None:
    run = make(tmp_path, model, example)
    check_safetensors(run.artifact("model.safetensors"))
    (artifact,) = run.report.artifacts
    assert artifact.verified
    assert artifact.output is None


def test_one_scale_for_a_whole_weight_has_its_axes_too(tmp_path: Path) -> None:
    run = make(tmp_path, models.mlp(), torch.randn(2, 64), weights={"granularity": "per_tensor"})
    assert stored(run)[1]["0.weight.scale"].shape == (1, 1)
    check_safetensors(run.artifact("model.safetensors"))


def test_int4_is_packed_two_values_a_byte_in_groups(tmp_path: Path) -> None:
    run = make(tmp_path, models.mlp(), torch.randn(2, 64), method="weight_only", weights=GROUPS_OF_32)
    manifest, tensors = stored(run)
    (weight,) = manifest.layers["0"].weights
    assert (weight.packed, weight.axis, weight.group_size, weight.shape) == (True, 1, 32, (256, 64))
    assert tensors["0.weight"].shape == (256, 32)
    assert tensors["0.weight.scale"].shape == (256, 2)
    check_safetensors(run.artifact("model.safetensors"))


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    manifest, tensors = stored(make(tmp_path, models.Tied(), torch.zeros(3, 5, dtype=torch.long)))
    assert len(manifest.layers) == 2
    assert len({layer.weights[0].values for layer in manifest.layers.values()}) == 1
    assert sum(tensor.dtype == np.int8 and tensor.size == 32 * 8 for tensor in tensors.values()) == 1


def test_one_changed_scale_is_found_and_its_layer_named(tmp_path: Path) -> None:
    run = make(tmp_path, models.small(), torch.randn(2, 8))
    path = run.artifact("model.safetensors")
    _, tensors = stored(run)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    tensors["3.weight.scale"] = tensors["3.weight.scale"] * np.float32(1.001)
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"^3: "):
        check_safetensors(path)


def test_a_file_without_a_program_measures_no_output(tmp_path: Path) -> None:
    report = make(tmp_path, models.small(), torch.randn(2, 8)).report
    assert (report.accuracy, report.latency, report.size.after) == (None, None, None)
    assert json.loads(report.model_dump_json())["artifacts"][0]["output"] is None
