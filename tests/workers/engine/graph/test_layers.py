"""Finding the layers: all of them, under the user's names."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.workers.engine import models
from tests.workers.engine.runs import load_exported
from workers.engine.explanation.reasons import unquantizable
from workers.engine.graph.layers import find_layers

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export's own, about the models below


def layers_of(model: nn.Module, *example: torch.Tensor, folder: Path, dynamic: bool = True):
    layers, products = find_layers(load_exported(model, example, folder, dynamic))
    return {layer.name: layer for layer in layers}, products


def test_attention_has_its_projections_under_their_names_and_its_scores_as_products(tmp_path: Path) -> None:
    layers, products = layers_of(models.Attention(), torch.randn(2, 4, 8), folder=tmp_path)
    assert {"encoder.layers.0.self_attn.in_proj", "encoder.layers.0.self_attn.out_proj"} <= set(layers)
    assert {"embed", "encoder.layers.1.linear1", "encoder.layers.1.linear2", "head"} <= set(layers)
    assert layers["encoder.layers.0.self_attn.in_proj"].shape == (96, 32)
    assert [product.op for product in products] == ["aten.scaled_dot_product_attention"] * 2


def test_a_linear_as_the_whole_model_has_the_empty_name(tmp_path: Path) -> None:
    layers, _ = layers_of(nn.Linear(8, 4), torch.randn(2, 8), folder=tmp_path)
    assert list(layers) == [""]
    assert layers[""].type == "torch.nn.Linear"
    assert layers[""].parameters == 8 * 4 + 4


def test_every_product_with_a_constant_is_a_layer_whatever_calls_it(tmp_path: Path) -> None:
    layers, products = layers_of(models.Functional(), torch.randn(3, 8), folder=tmp_path)
    assert set(layers) == {"weight", "right", "table", "left"}
    assert [layer.op for layer in layers.values()] == ["aten.linear", "aten.matmul", "aten.addmm", "aten.matmul"]
    assert not products


def test_subclasses_lookalikes_parametrized_and_unregistered_linears_are_layers(tmp_path: Path) -> None:
    layers, _ = layers_of(models.Kinds(), torch.randn(3, 8), folder=tmp_path)
    assert set(layers) == {"plain", "subclass", "dense", "normed", "lifted_tensor_0"}
    assert all(layer.kind == "linear" for layer in layers.values())


def test_a_layer_under_no_grad_is_found_like_any_other(tmp_path: Path) -> None:
    layers, _ = layers_of(models.UnderNoGrad(), torch.randn(3, 8), folder=tmp_path)
    assert {name: layer.kind for name, layer in layers.items()} == {"inner": "linear", "outer": "linear"}


def test_a_layer_inside_a_branch_is_found_under_its_name(tmp_path: Path) -> None:
    layers, _ = layers_of(models.Conditional(), torch.randn(3, 8), folder=tmp_path)
    assert {name: layer.kind for name, layer in layers.items()} == {"outer": "linear", "inner": "nested"}
    assert layers["inner"].shape == (8, 8)


def test_a_layer_called_twice_is_one_row_with_two_uses(tmp_path: Path) -> None:
    layers, _ = layers_of(models.CalledTwice(), torch.randn(3, 8), folder=tmp_path)
    assert len(layers["shared"].uses) == 2


def test_a_tied_head_and_its_table_are_two_rows(tmp_path: Path) -> None:
    layers, _ = layers_of(models.Tied(), torch.zeros(2, 4, dtype=torch.long), folder=tmp_path)
    assert {name: layer.kind for name, layer in layers.items()} == {"table": "embedding", "head": "linear"}


def test_what_is_no_linear_is_a_layer_too(tmp_path: Path) -> None:
    layers, _ = layers_of(models.Mixed(), torch.zeros(2, 5, dtype=torch.long), folder=tmp_path)
    kinds = {name: layer.kind for name, layer in layers.items()}
    assert kinds == {"table": "embedding", "conv": "convolution", "lstm": "recurrent", "head": "linear"}
    assert not any(map(unquantizable, layers.values()))
    assert layers["lstm"].parameters == 4 * 8 * 8 * 2 + 4 * 8 * 2


def test_impossible_weights_have_their_reason(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 0))
    with torch.no_grad():
        model[1].weight[2, 3] = float("nan")
    layers, _ = layers_of(model, torch.randn(2, 8), folder=tmp_path)
    codes = [getattr(unquantizable(layer), "code", None) for layer in layers.values()]
    assert codes == [None, "nan-inf", "shape"]
