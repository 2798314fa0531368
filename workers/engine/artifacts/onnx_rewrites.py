"""Operators that the exporter or ONNX Runtime takes for something else, in the words of others that they do not.

attention    the exporter takes four dimensions only (torch 2.13): a batch of one is put before three
avg_pool     the exporter drops ``divisor_override``, and the runtime's integer kernel counts the windows that
             ``ceil_mode`` adds wrongly (1.22): the edge is padded, windows are averaged whole, and each result is
             multiplied by what it was divided too much
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from torch import fx

from fewbit.runtime.program import argument, arguments, rank
from workers.engine.graph.editor import GraphEditor

aten = torch.ops.aten
POOLS = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
ATTENTION = aten.scaled_dot_product_attention.default


def rewrite_for_onnx(editor: GraphEditor) -> None:
    """All calls of ``editor`` that need it."""
    for node in list(editor.graph.nodes):
        if node.target is ATTENTION and rank(node) < 4:
            _add_leading_axes(editor, node)
        elif node.target in POOLS:
            _rewrite_pool(editor, node, POOLS[node.target])


def _add_leading_axes(editor: GraphEditor, node: fx.Node) -> None:
    missing = 4 - rank(node)
    with editor.graph.inserting_before(node):
        operands = [_unsqueeze(editor, node, operand, missing) for operand in node.args[:3]]
        result = editor.call(node, ATTENTION, *operands, *node.args[3:], **node.kwargs)
        for _ in range(missing):
            result = editor.call(node, aten.squeeze.dim, result, 0)
    editor.replace(node, result)


def _unsqueeze(editor: GraphEditor, node: fx.Node, operand: Any, missing: int) -> Any:
    for _ in range(missing):
        operand = editor.call(node, aten.unsqueeze.default, operand, 0)
    return operand


# --- Average pooling ---


def _rewrite_pool(editor: GraphEditor, node: fx.Node, count: int) -> None:
    pooled_over, ceil, counted = arguments(node, "kernel_size", "ceil_mode", "count_include_pad")
    kernel = _per_axis(pooled_over, count)
    stride = _per_axis(argument(node, "stride") or pooled_over, count)
    padding = _per_axis(argument(node, "padding"), count)
    divisor = argument(node, "divisor_override") if count > 1 else None
    if not ceil and divisor is None:
        return
    size = list(node.all_input_nodes[0].meta["val"].shape[-count:])
    result = list(node.meta["val"].shape[-count:])
    if ceil and not all(isinstance(length, int) for length in (*size, *result)):
        return  # a free size: what comes of it is measured
    beyond = [
        max(0, (results - 1) * step + window - length - 2 * pad) if ceil else 0
        for results, step, window, length, pad in zip(result, stride, kernel, size, padding, strict=True)
    ]
    with editor.graph.inserting_before(node):
        edges = [
            edge for pad, extra in reversed(list(zip(padding, beyond, strict=True))) for edge in (pad, pad + extra)
        ]
        x = editor.call(node, aten.constant_pad_nd.default, node.args[0], edges) if any(edges) else node.args[0]
        pooled = editor.call(node, node.target, x, kernel, stride)
        if divisor is not None:
            pooled = editor.call(node, aten.mul.Tensor, pooled, math.prod(kernel) / divisor)
        elif any(edges):
            share = _share(result, kernel, stride, padding, size, counted)
            held = editor.add_buffer(f"pool_share_{len(editor.specs)}", share.to(node.meta["val"].dtype))
            pooled = editor.call(node, aten.mul.Tensor, pooled, held)
    editor.replace(node, pooled)


def _share(
    result: list[int], kernel: list[int], stride: list[int], padding: list[int], size: list[int], counted: bool
) -> torch.Tensor:
    """For each window, its whole size over the number of elements that torch divides by: float32 ``result``."""
    axes = []
    for results, window, step, pad, length in zip(result, kernel, stride, padding, size, strict=True):
        low, high = (0, length + 2 * pad) if counted else (pad, length + pad)
        starts = [index * step for index in range(results)]
        axes.append([max(0, min(start + window, high) - max(start, low)) for start in starts])
    counts = torch.tensor([math.prod(counts) for counts in product(*axes)], dtype=torch.float32)
    return (math.prod(kernel) / counts.clamp_min(1)).reshape(result)


def _per_axis(value: Any, count: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * count if len(values) == 1 else values
