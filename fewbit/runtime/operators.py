"""Sets of ATen operators that the runtime treats alike. Those that only the engine asks for: ``graph/ops.py``."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

aten = torch.ops.aten

RELUS = frozenset((aten.relu.default, aten.relu_.default))
CLAMPS = frozenset((aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default, aten.clamp_min.default))
ADDS = frozenset((aten.add.Tensor, aten.add_.Tensor))
EMBEDDING_TAILS = frozenset((aten.mul.Tensor, aten._to_copy.default, aten.flatten.using_ints))
"""What may stand last where rows of an integer table are gathered and scaled."""

KEEPS_VALUES = frozenset(
    (aten.max_pool2d.default, aten.max_pool1d.default, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default,
     aten.mean.dim, aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.permute.default,
     aten.transpose.int, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.slice.Tensor,
     aten.dropout.default, aten.contiguous.default, aten.clone.default, aten.relu.default)
)  # fmt: skip
"""Calls whose result keeps its input's scale and zero point, and that run on quantized tensors as they are."""

IN_PLACE = frozenset((
    aten.gelu.default, aten.relu.default, aten.silu.default, aten.tanh.default, aten.sigmoid.default, aten.add.Tensor,
    aten.mul.Tensor,
))  # fmt: skip
"""Elementwise calls whose result may take the memory of an argument that nobody else reads."""

SHAPE_VIEWS = frozenset((aten.view.default, aten._unsafe_view.default))
"""Views that fail where the value lies in memory otherwise than the graph says."""

METADATA_CHECK = aten._assert_tensor_metadata.default
"""What the exporter writes before a cast."""

CHECKS = frozenset((
    aten._assert_scalar.default, aten._assert_async.msg, METADATA_CHECK,
    aten.sym_constrain_range.default, aten.sym_constrain_range_for_size.default,
))  # fmt: skip
"""Calls that check a value and give none."""

# --- How TorchScript writes what is no operator ---

BINARY = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.floordiv: "//", operator.truediv: "/",
    operator.mod: "%", operator.pow: "**", operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=",
    operator.gt: ">", operator.ge: ">=", operator.and_: "and", operator.or_: "or",
}  # fmt: skip
CALLS: dict[Any, str] = {
    math.floor: "math.floor", math.ceil: "math.ceil", math.trunc: "int", operator.neg: "-",
    torch.sym_max: "max", torch.sym_min: "min", torch.sym_float: "float", torch.sym_int: "int", torch.sym_not: "not ",
}  # fmt: skip
SIZES = {aten.sym_size.int: "size", aten.sym_stride.int: "stride"}
ITEMS = frozenset((aten.item.default, aten._local_scalar_dense.default))

# --- Regions ---

GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
AUTOCAST = torch.ops.higher_order.wrap_with_autocast

# By base name: what CPU autocast runs in the lower precision, and what in the widest of its inputs.
LOWERED_BY_AUTOCAST = frozenset((
    "conv1d", "conv2d", "conv3d", "bmm", "mm", "linalg_vecdot", "baddbmm", "addmm", "addbmm", "linear", "matmul",
    "conv_tbc", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "prelu", "scaled_dot_product_attention",
    "einsum",
))  # fmt: skip
PROMOTED_BY_AUTOCAST = frozenset(("stack", "cat", "index_copy"))
