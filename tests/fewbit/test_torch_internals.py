"""What the runtime needs of torch's own parts: after a new release of torch, what fails here says what to change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fewbit.runtime import torch_internals
from fewbit.runtime.kernels import pack_linear
from fewbit.runtime.torch_internals import pytree

aten = torch.ops.aten
PACKED = pack_linear(torch.ones(3, 3, dtype=torch.int8), torch.ones(3))


def test_an_overload_is_told_from_other_targets() -> None:
    assert torch_internals.is_operator(aten.conv2d.padding)
    assert not torch_internals.is_operator(aten.conv2d)
    assert not torch_internals.is_operator(torch.relu)
    assert not torch_internals.is_operator("output")


def test_an_overload_tells_its_names() -> None:
    assert torch_internals.base_name(aten.conv2d.padding) == "conv2d"
    assert torch_internals.overload_name(aten.conv2d.padding) == "padding"


def test_a_schema_tells_names_places_types_and_defaults_of_parameters() -> None:
    known = torch_internals.parameters(aten.conv2d.padding)
    assert list(known) == ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    assert (known["padding"].position, known["padding"].default) == (4, "valid")
    assert known["bias"].type == "Optional[Tensor]"
    assert torch_internals.parameters(aten.cat.default)["tensors"].type == "List[Tensor]"
    assert torch_internals.parameters(aten.add.Tensor)["alpha"].keyword_only


def test_a_schema_tells_what_a_call_writes_and_what_it_views() -> None:
    assert torch_internals.writes(aten.relu_.default)
    assert not torch_internals.writes(aten.relu.default)
    assert torch_internals.gives_view(aten.transpose.int)
    assert not torch_internals.gives_view(aten.relu_.default)
    assert torch_internals.aliases_first(aten.relu_.default)
    assert torch_internals.aliases_first(aten.view.default)
    assert not torch_internals.aliases_first(aten.mm.default)
    assert torch_internals.result_count(aten.lstm.input) == 3
    assert torch_internals.result_count(aten._assert_scalar.default) == 0


@pytest.mark.parametrize(
    ("value", "expression"),
    [
        (torch.ones(3), "x + self.held"),
        (PACKED, "torch.ops.quantized.linear_dynamic(x, self.held)"),
        ([torch.ones(3), torch.ones(3)], "x + self.held[0] + self.held[1]"),
    ],
    ids=["tensor", "packed weight", "list"],
)  # fmt: skip
def test_source_text_becomes_a_module_that_holds_constants(value: Any, expression: str) -> None:
    module = torch_internals.new_module("Test")
    torch_internals.set_constant(module, "held", value)
    compiled = torch_internals.compile_forward(module, f"def forward(self, x: Tensor):\n    return {expression}\n")
    assert isinstance(compiled, torch.jit.ScriptModule)
    assert compiled(torch.zeros(1, 3)).shape == (1, 3)


def test_source_text_that_torchscript_refuses_is_a_runtime_error() -> None:
    module = torch_internals.new_module("Test")
    with pytest.raises(RuntimeError):
        torch_internals.compile_forward(module, "def forward(self, x: Tensor):\n    return unknown(x)\n")


def test_a_per_channel_tensor_holds_the_integers_it_was_given() -> None:
    values = torch.tensor([[1, -128], [127, 0]], dtype=torch.int8)
    made = torch_internals.per_channel_tensor(values, torch.tensor([0.5, 2.0]).double(), torch.zeros(2).long(), 0)
    assert torch.equal(made.int_repr(), values)
    assert torch.equal(made.dequantize(), torch.tensor([[0.5, -64.0], [254.0, 0.0]]))


def test_nested_arguments_are_taken_apart_and_put_together() -> None:
    nested = ((1, 2), {"a": [3]})
    leaves, spec = pytree.tree_flatten(nested)
    assert leaves == [1, 2, 3] == pytree.tree_leaves(nested)
    assert pytree.tree_unflatten(leaves, spec) == nested
    assert spec.child(1).context == ["a"]
    assert pytree.tree_map(lambda leaf: leaf + 1, nested) == ((2, 3), {"a": [4]})


def test_shapes_are_computed_on_fake_tensors_through_the_python_dispatcher() -> None:
    exported = torch.export.export(torch.nn.Linear(3, 2), (torch.ones(4, 3),))
    x = next(node.meta["val"] for node in exported.graph.nodes if node.name == "input")
    with x.fake_mode, torch_internals.enable_python_dispatcher():
        assert aten.transpose.int(x, 0, 1).shape == (3, 4)
