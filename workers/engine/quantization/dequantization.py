"""Integer weights back to floats, as tensor functions that the reference inserts into a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.engine.graph.tracing import depends_on_sizes

aten = torch.ops.aten


def unpack_nibbles(packed: Tensor) -> Tensor:
    """uint8 of two int4 values a byte, each plus 8, to int8 -8..7: along the last axis, the low nibbles come first."""
    low, high = torch.bitwise_and(packed, 15), torch.bitwise_right_shift(packed, 4)
    values: Tensor = aten.sub.Scalar(torch.cat([low, high], -1).to(torch.int8), 8)
    return values


@depends_on_sizes
def dequantize_groups(values: Tensor, scale: Tensor, axis: int, group_size: int) -> Tensor:
    """Float32 ``values`` times one scale for ``group_size`` neighbours along ``axis``."""
    grouped = torch.unflatten(values, axis, [-1, group_size]) * scale.unsqueeze(axis + 1)
    return grouped.view(values.shape)


@depends_on_sizes
def dequantize_rows(rows: Tensor, scale: Tensor, group_size: int) -> Tensor:
    """The same along the last axis of rows that were gathered from a table, however many there are."""
    last = rows.dim() - 1
    grouped = torch.unflatten(rows, last, [-1, group_size]) * scale.unsqueeze(-1)
    return grouped.flatten(last, last + 1)


def order_of(indices: Tensor) -> Tensor:
    """0, 1, 2, ...: one number for each index."""
    ones: Tensor = aten.ones_like.default(indices)
    return ones.cumsum(0) - ones
