"""The eager verdict, held against the call it speaks of: torch.ao.quantization.quantize_dynamic itself."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.workers.engine import models
from tests.workers.engine.runs import load_exported
from workers.engine.explanation.quantize_dynamic import predict_quantize_dynamic
from workers.engine.graph.layers import find_layers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

IDS = torch.zeros(2, 5, dtype=torch.long)
SITUATIONS = {
    "mlp": (models.mlp(), torch.randn(2, 64)),
    "attention": (models.Attention(), torch.randn(2, 4, 8)),
    "root": (nn.Linear(8, 4), torch.randn(2, 8)),
    "functional": (models.Functional(), torch.randn(3, 8)),
    "mixed": (models.Mixed(), IDS),
    "tied": (models.Tied(), IDS),
    "shared": (models.CalledTwice(), torch.randn(2, 8)),
    "under no_grad": (models.UnderNoGrad(), torch.randn(2, 8)),
}


def swapped_by_eager(model: nn.Module) -> set[str]:
    """The names of the modules that quantize_dynamic really replaces."""
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model).eval())
    return {
        name
        for name, module in quantized.named_modules()
        if ".ao.nn.quantized.dynamic." in str(type(module)) and "PackedParameter" not in str(type(module))
    }


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_verdict_is_what_quantize_dynamic_does(situation: str, tmp_path: Path) -> None:
    model, example = SITUATIONS[situation]
    layers, _ = find_layers(load_exported(model, (example,), tmp_path))
    said = {layer.name for layer in layers if predict_quantize_dynamic(layer).quantized}
    assert said == swapped_by_eager(model)


def test_each_class_that_is_not_exactly_a_linear_has_its_own_code(tmp_path: Path) -> None:
    model = models.Kinds()
    layers, _ = find_layers(load_exported(model, (torch.randn(3, 8),), tmp_path))
    codes = {layer.name: getattr(predict_quantize_dynamic(layer).reason, "code", None) for layer in layers}
    assert codes == {
        "plain": None,
        "subclass": "subclass",
        "dense": "lookalike",
        "normed": "parametrized",
        "lifted_tensor_0": "unregistered",
    }
    model.normed = nn.Identity()  # quantize_dynamic fails for the whole model on a parametrized linear
    assert swapped_by_eager(model) == {"plain"}


def test_the_fast_path_verdict_is_true(tmp_path: Path) -> None:
    model, x = models.Attention().eval(), torch.randn(2, 4, 8)
    layers, _ = find_layers(load_exported(model, (x,), tmp_path))
    verdict = next(predict_quantize_dynamic(layer) for layer in layers if layer.name == "encoder.layers.0.linear1")
    assert verdict.reason is not None
    assert verdict.reason.code == "fastpath"
    broken = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model))
    with pytest.raises(AttributeError), torch.no_grad():
        broken(x)
