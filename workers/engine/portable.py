"""The program as ``.pt2``: plain ATen operators, int8 weights, no project code and no dead float weight.

The int8 arithmetic is written out (see ``int8.py``) with the integers carried in float32. Sums of products below 2**24
are exact there, so up to 1,040 in_features (2,080 with seven bits) the result differs from the int8
kernel's only where rounding ties.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputSpec, TensorArgument

from workers.engine.archive import shrink
from workers.engine.int8 import TINY
from workers.engine.layers import Use
from workers.engine.program import Program
from workers.engine.quantize import QuantizedLayer

aten = torch.ops.aten


def save_pt2(program: Program, quantized: Iterable[QuantizedLayer], path: Path) -> None:
    """Write ``path``; it loads with ``torch.export.load`` alone. ``program`` is not changed."""
    torch.export.save(_Rewriter(program).rewrite(quantized), path)
    shrink(path)


class _Rewriter:
    """Replaces each quantized layer by its Q/DQ form in a copy of the program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.exported = _shallow_copy(program.exported)
        self.graph: fx.Graph = self.exported.graph_module.graph
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.specs = list(self.exported.graph_signature.input_specs)
        self.state = dict(self.exported.state_dict)
        self.fake = _fake_mode(self.graph)
        self.rows: dict[tuple[fx.Node, int, bool], tuple[fx.Node, fx.Node]] = {}

    def rewrite(self, quantized: Iterable[QuantizedLayer]) -> ExportedProgram:
        for index, each in enumerate(quantized):
            values = self._buffer(f"int8_values_{index}", each.weight.values)
            factor = self._buffer(f"int8_scale_{index}", each.weight.scale * each.activation.scale)
            for use in each.layer.uses:
                self._replace(use, values, factor, each)
        self._drop_dead()
        self.graph.lint()
        self.exported.graph_module.recompile()
        return self._assembled()

    def _replace(self, use: Use, values: fx.Node, factor: fx.Node, quantized: QuantizedLayer) -> None:
        node = self.nodes[use.node.name]
        with self.graph.inserting_before(node):
            rows, scale = self._quantized_rows(use, node, quantized.activation.levels)
            weight = self._call(node, aten._to_copy.default, values, dtype=torch.float32)
            product = self._call(node, aten.linear.default, rows, weight)
            product = self._call(node, aten.mul.Tensor, product, factor)
            result = self._scaled(product, scale, use, node)
        node.replace_all_uses_with(result)
        self.graph.erase_node(node)
        self.nodes[use.node.name] = result

    def _quantized_rows(self, use: Use, node: fx.Node, levels: int) -> tuple[fx.Node, fx.Node]:
        key = (use.input, levels, use.left)
        if key not in self.rows:
            x = self.nodes[use.input.name]
            if x.meta["val"].dtype is not torch.float32:
                x = self._call(node, aten._to_copy.default, x, dtype=torch.float32)
            if use.left:
                x = self._call(node, aten.transpose.int, x, -1, -2)
            largest = self._call(node, aten.amax.default, self._call(node, aten.abs.default, x), [-1], True)
            scale = self._call(node, aten.clamp_min.default, largest, TINY)
            unit = self._call(node, aten.div.Tensor, x, scale)
            rows = self._call(node, aten.round.default, self._call(node, aten.mul.Tensor, unit, float(levels)))
            self.rows[key] = (rows, scale)
        return self.rows[key]

    def _scaled(self, product: fx.Node, scale: fx.Node, use: Use, node: fx.Node) -> fx.Node:
        dtype = node.meta["val"].dtype
        bias = self.nodes[use.bias.name] if use.bias is not None else None
        plain = use.alpha == 1 and use.beta == 1 and not use.left and dtype is torch.float32
        if bias is not None and plain:
            return self._call(node, aten.addcmul.default, bias, product, scale)
        product = self._call(node, aten.mul.Tensor, product, scale)
        if use.left:
            product = self._call(node, aten.transpose.int, product, -1, -2)
        if use.alpha != 1:
            product = self._call(node, aten.mul.Tensor, product, use.alpha)
        if bias is not None:
            product = self._call(node, aten.add.Tensor, product, bias, alpha=use.beta)
        return product if dtype is torch.float32 else self._call(node, aten._to_copy.default, product, dtype=dtype)

    def _call(self, like: fx.Node, target: Any, *arguments: Any, **keywords: Any) -> fx.Node:
        """A new node, with the metadata export demands: its fake value and its place in the module tree."""
        node = self.graph.call_function(target, arguments, keywords)
        fakes, named = fx.node.map_arg((arguments, keywords), lambda each: each.meta["val"])
        with self.fake, enable_python_dispatcher(), torch.no_grad():
            node.meta["val"] = target(*fakes, **named)
        node.meta["nn_module_stack"] = like.meta.get("nn_module_stack", {})
        node.meta["stack_trace"] = like.meta.get("stack_trace")
        return node

    def _buffer(self, name: str, value: Tensor) -> fx.Node:
        first = next(node for node in self.graph.nodes if node.op == "placeholder")
        with self.graph.inserting_before(first):
            node = self.graph.placeholder(f"b_{name}")
        node.meta["val"] = self.fake.from_tensor(value, static_shapes=True)
        self.specs.insert(0, InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, persistent=True))
        self.state[name] = value
        return node

    def _drop_dead(self) -> None:
        """Remove what nothing uses any more: the float weights above all."""
        self.graph.eliminate_dead_code()
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        kept = []
        for node, spec in zip(placeholders, self.specs, strict=True):
            if spec.kind is InputKind.USER_INPUT or node.users:
                kept.append(spec)
            else:
                self.graph.erase_node(node)
        self.specs = kept

    def _assembled(self) -> ExportedProgram:
        used = {spec.target for spec in self.specs}
        original = self.exported
        outputs = original.graph_signature.output_specs
        return ExportedProgram(
            root=original.graph_module,
            graph=self.graph,
            graph_signature=ExportGraphSignature(self.specs, [self._renamed(spec) for spec in outputs]),
            state_dict={name: _own(value) for name, value in self.state.items() if name in used},
            range_constraints=original.range_constraints,
            module_call_graph=original.module_call_graph,
            example_inputs=None,
            constants={name: value for name, value in original.constants.items() if name in used},
            verifiers=original.verifiers,
        )

    def _renamed(self, spec: OutputSpec) -> OutputSpec:
        """An output that a quantized layer gives has the name of the node that took its place."""
        if not isinstance(spec.arg, TensorArgument):
            return spec
        return OutputSpec(spec.kind, TensorArgument(self.nodes[spec.arg.name].name), spec.target)


def _shallow_copy(exported: ExportedProgram) -> ExportedProgram:
    """Its own graph, the same tensors."""
    module = exported.graph_module
    graph = copy.deepcopy(module.graph)
    for node, original in zip(graph.nodes, module.graph.nodes, strict=True):
        node.name = original.name  # the copy renames what shadows a builtin, an argument called "input" above all
    graph_module = fx.GraphModule(module, graph)
    graph_module.meta.update(module.meta)
    return ExportedProgram(
        root=graph_module,
        graph=graph_module.graph,
        graph_signature=copy.deepcopy(exported.graph_signature),
        state_dict=exported.state_dict,
        range_constraints=exported.range_constraints,
        module_call_graph=exported.module_call_graph,
        example_inputs=None,
        constants=exported.constants,
        verifiers=exported.verifiers,
    )


def _fake_mode(graph: fx.Graph) -> FakeTensorMode:
    for node in graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if isinstance(mode, FakeTensorMode):
            return mode
    return FakeTensorMode()


def _own(value: Tensor) -> Tensor:
    """Export writes whole storages: a view of a larger one is copied out."""
    if value.untyped_storage().nbytes() == value.numel() * value.element_size():
        return value
    return value.detach().clone()
