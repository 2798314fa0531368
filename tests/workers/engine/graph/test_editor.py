"""Tensor functions on a graph: what is inserted computes what the function computes, and looks as export wants it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from fewbit.runtime.program import Program, argument, arguments, program_of
from fewbit.runtime.record import PerToken
from tests.workers.engine.runs import load_exported
from workers.engine.graph.editor import GraphEditor, after
from workers.engine.quantization.activations import quantize_at, quantize_per_token, scaled_rows
from workers.engine.quantization.dequantization import dequantize_groups, dequantize_rows, unpack_nibbles

SCHEMES = [
    PerToken(levels=127, axes=(-1,)),
    PerToken(levels=63, axes=(-2,)),
    PerToken(levels=127, axes=(-1,), range="nonnegative"),
    PerToken(levels=127, axes=(-1,), range="affine"),
]


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return load_exported(Doubled(), (torch.randn(4, 6, 8),), tmp_path)


def inserted(program: Program, function: object, **settings: object) -> Program:
    """``function(2 * x)``"""
    editor = GraphEditor(program)
    doubled = editor.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)[0]
    with editor.graph.inserting_before(after(doubled)):
        result = editor.insert(doubled, function, doubled, **settings)  # type: ignore[arg-type]
    output = editor.graph.output_node()
    output.replace_input_with(doubled, result)
    editor.nodes[doubled.name] = result
    return editor.finish()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_an_inserted_function_computes_what_it_computes_on_tensors(program: Program, scheme: PerToken) -> None:
    changed = inserted(program, quantize_per_token, scheme=scheme)
    x = torch.randn(5, 6, 8)
    assert torch.equal(changed.exported.module()(x), quantize_per_token(2 * x, scheme))


def test_a_fixed_range_is_one_formula_too(program: Program) -> None:
    x = torch.randn(5, 6, 8)
    for scale, zero_point in ((0.02, 128), (0.5, 3)):  # the second is not traced again
        numbers = {"scale": scale, "zero_point": float(zero_point), "qmin": 0.0, "qmax": 255.0}
        changed = inserted(program, quantize_at, numbers=numbers)
        expected = torch.fake_quantize_per_tensor_affine(2 * x, scale, zero_point, 0, 255)
        assert torch.allclose(changed.exported.module()(x), expected, atol=1e-6)
        assert torch.equal(changed.exported.module()(x), quantize_at(2 * x, **numbers))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_new_node_says_what_it_gives(program: Program, scheme: PerToken) -> None:
    changed = inserted(program, quantize_per_token, scheme=scheme)
    fakes = {node: node.meta["val"] for node in changed.graph.nodes if node.op == "placeholder"}
    for node in changed.graph.nodes:
        if node.op == "call_function":
            given, named = fx.node.map_arg((node.args, dict(node.kwargs)), fakes.__getitem__)
            with node.meta["val"].fake_mode:
                fakes[node] = node.target(*given, **named)
            assert fakes[node].shape == node.meta["val"].shape
            assert fakes[node].stride() == node.meta["val"].stride()
            assert fakes[node].dtype is node.meta["val"].dtype


def test_the_result_of_a_view_with_gaps_has_none(program: Program) -> None:
    """Strides are of what the call gives, not of the view it reads."""
    editor = GraphEditor(program)
    doubled = editor.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)[0]
    numbers = {"scale": 0.02, "zero_point": 128.0, "qmin": 0.0, "qmax": 255.0}
    with editor.graph.inserting_before(after(doubled)):
        view = editor.call(doubled, torch.ops.aten.select.int, doubled, 1, 0)
        result = editor.insert(doubled, quantize_at, view, numbers=numbers)
    assert view.meta["val"].stride() == (48, 1)
    assert result.meta["val"].stride() == (8, 1)


def test_a_function_of_several_results_gives_as_many_nodes(program: Program) -> None:
    editor = GraphEditor(program)
    doubled = editor.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)[0]
    with editor.graph.inserting_before(after(doubled)):
        rows, scale, low = editor.insert(doubled, scaled_rows, doubled, axes=(-1,), range="symmetric")
    assert rows.meta["val"].shape == doubled.meta["val"].shape
    assert scale.meta["val"].shape[-1] == 1
    assert low is None


def test_what_is_packed_is_unpacked_and_scaled_by_groups() -> None:
    values = torch.randint(-8, 8, (6, 8), dtype=torch.int8)
    low, high = (values + 8).to(torch.uint8).chunk(2, dim=-1)
    assert torch.equal(unpack_nibbles(low | (high << 4)), values)
    scale = torch.rand(6, 2)
    expected = values.float() * scale.repeat_interleave(4, 1)
    assert torch.equal(dequantize_groups(values.float(), scale, axis=1, group_size=4), expected)
    assert torch.equal(dequantize_rows(values.float(), scale, group_size=4), expected)


def test_arguments_are_found_by_the_names_of_the_schema() -> None:
    class Clamped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.hardtanh(torch.clamp(nn.functional.conv2d(x, x, stride=2), max=3.0), min_val=0.0)

    graph = program_of(torch.export.export(Clamped(), (torch.ones(1, 1, 4, 4),))).graph
    calls = {str(node.target): node for node in graph.nodes if node.op == "call_function"}
    convolution, clamp, hardtanh = (calls[f"aten.{name}.default"] for name in ("conv2d", "clamp", "hardtanh"))
    assert arguments(convolution, "bias", "stride", "groups") == (None, [2, 2], 1)
    assert (argument(clamp, "min", "min_val"), argument(clamp, "max", "max_val")) == (None, 3.0)
    assert (argument(hardtanh, "min", "min_val"), argument(hardtanh, "max", "max_val")) == (0.0, 1)
    with pytest.raises(LookupError):
        argument(clamp, "padding")
