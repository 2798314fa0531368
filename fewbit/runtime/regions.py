"""Regions of a graph that run under a mode: they hide what is inside from everything that walks only the top graph.

A grad mode means nothing at inference. Autocast means casts: they are written out, by the lists of PyTorch's CPU
autocast (``aten/src/ATen/autocast_mode.cpp``), and the region is left alone where that gives another dtype than the
exporter saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from fewbit.runtime.operators import AUTOCAST, GRAD, LOWERED_BY_AUTOCAST, METADATA_CHECK, PROMOTED_BY_AUTOCAST
from fewbit.runtime.torch_internals import base_name, enable_python_dispatcher, is_operator, pytree

aten = torch.ops.aten
REGION = "fewbit_region"  # in the metadata of a node that lay in one: which


def inline_regions(module: fx.GraphModule) -> None:
    """Put the body of every grad-mode and autocast region in the region's place."""
    regions = [node for node in module.graph.nodes if node.target in (GRAD, AUTOCAST)]
    for node in regions:
        region = next(body for body in node.all_input_nodes if body.op == "get_attr")
        body = getattr(module, str(region.target))
        inline_regions(body)
        operands = node.args[node.args.index(region) + 1 :]
        casts = _Casts(module.graph, node.args[1]) if node.target is AUTOCAST and node.args[2] else None
        if casts is not None and not casts.understands(body):
            continue
        _inline(module, node, body, operands, casts)
        module.graph.erase_node(node)
        if not region.users:
            module.graph.erase_node(region)
            delattr(module, str(region.target))
    if regions:
        module.recompile()


def _inline(module: fx.GraphModule, call: fx.Node, body: fx.GraphModule, operands: Sequence[Any], casts: Any) -> None:
    graph = module.graph
    placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
    copies: dict[fx.Node, Any] = dict(zip(placeholders, operands, strict=True))
    with graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "get_attr":
                copies[node] = _adopted(module, body, node)
            elif node.op == "call_function":
                copies[node] = graph.node_copy(node, copies.__getitem__)
                copies[node].meta.setdefault(REGION, str(call.target))
                if casts is not None:
                    casts.apply(copies[node])
    results = next(node for node in body.graph.nodes if node.op == "output").args[0]
    returned = next(node for node in graph.nodes if node.op == "output").all_input_nodes
    for user in list(call.users):
        name, result = user.name, copies[results[user.args[1]]]
        user.replace_all_uses_with(result)
        graph.erase_node(user)
        if user in returned:
            result.name = name  # the signature knows outputs by name


def _adopted(module: fx.GraphModule, body: fx.GraphModule, node: fx.Node) -> fx.Node:
    """A region within the region becomes one of the outer module."""
    name = f"{node.target}_of_region"
    while hasattr(module, name):
        name += "_"
    module.add_submodule(name, getattr(body, str(node.target)))
    return module.graph.get_attr(name)


class _Casts:
    """What autocast to ``dtype`` does before each call."""

    def __init__(self, graph: fx.Graph, dtype: Any) -> None:
        self.graph = graph
        self.dtype = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16

    def understands(self, body: fx.GraphModule) -> bool:
        """Whether these casts give each call the dtype that the exporter saw."""
        dtypes: dict[fx.Node, Any] = {}
        for node in body.graph.nodes:
            value = node.meta.get("val")
            unknown = node.op == "call_function" and value is None and node.target is not METADATA_CHECK
            if node.op == "get_attr" or unknown:
                return False
            if not isinstance(value, Tensor):
                continue  # a check, a size, or several results whose readers are looked at
            if node.op == "call_function" and self._predicted(node, dtypes) != value.dtype:
                return False
            dtypes[node] = value.dtype
        return True

    def _predicted(self, node: fx.Node, dtypes: Mapping[fx.Node, Any]) -> torch.dtype:
        given: Any = fx.node.map_arg((node.args, dict(node.kwargs)), lambda operand: operand.meta["val"])
        wanted = self._wanted(node)
        if wanted is not None:
            given = pytree.tree_map(lambda value: value.to(wanted) if _is_float(value) else value, given)
        mode = next(iter(dtypes)).meta["val"].fake_mode
        with mode, enable_python_dispatcher(), torch.no_grad():
            target: Any = node.target
            result: Tensor = target(*given[0], **given[1])
        return result.dtype

    def _wanted(self, node: fx.Node) -> torch.dtype | None:
        name = base_name(node.target) if is_operator(node.target) else ""
        if name in LOWERED_BY_AUTOCAST:
            return self.dtype
        values = (operand.meta.get("val") for operand in node.all_input_nodes)
        floats = {value.dtype for value in values if _is_float(value)}
        if name in PROMOTED_BY_AUTOCAST and torch.float32 in floats:
            return torch.float32
        return None

    def apply(self, node: fx.Node) -> None:
        wanted = self._wanted(node)
        if wanted is None:
            return
        for operand in node.all_input_nodes:
            value = operand.meta.get("val")
            if _is_float(value) and value.dtype is not wanted:
                with self.graph.inserting_before(node):
                    cast = self.graph.call_function(aten._to_copy.default, (operand,), {"dtype": wanted})
                with value.fake_mode, enable_python_dispatcher(), torch.no_grad():
                    cast.meta = {**node.meta, "val": value.to(wanted)}
                node.replace_input_with(operand, cast)


def _is_float(value: Any) -> TypeGuard[Any]:
    return isinstance(value, Tensor) and value.dtype.is_floating_point
