"""Every set of ATen operators the engine asks for. Those the runtime needs too: ``fewbit/runtime/operators.py``."""

from __future__ import annotations

import operator
from typing import Any

import torch

from fewbit.runtime.operators import ADDS, CLAMPS, KEEPS_VALUES, RELUS

__all__ = ["ADDS", "CLAMPS", "KEEPS_VALUES", "RELUS"]

aten = torch.ops.aten

# --- Layers ---

EMBEDDING_BAGS = frozenset((
    aten.embedding_bag.default, aten.embedding_bag.padding_idx, aten._embedding_bag.default,
    aten._embedding_bag_forward_only.default,
))  # fmt: skip
EMBEDDINGS = EMBEDDING_BAGS | {aten.embedding.default}

PLAIN_CONVOLUTIONS = frozenset((
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
))  # fmt: skip
TRANSPOSED_CONVOLUTIONS = frozenset(
    (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
)
CONVOLUTIONS = PLAIN_CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS | {aten.convolution.default}

INTEGER_RECURRENT = frozenset((aten.lstm.input, aten.gru.input))
"""Those with int8 kernels."""
RECURRENT = INTEGER_RECURRENT | {aten.rnn_tanh.input, aten.rnn_relu.input}
CELLS = frozenset((
    aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default, aten.lstm_cell.default,
))  # fmt: skip

BATCHED_PRODUCTS = frozenset((aten.bmm.default, aten.matmul.default))
PRODUCTS = BATCHED_PRODUCTS | {
    aten.mm.default, aten.baddbmm.default, aten.einsum.default, aten.linear.default, aten.addmm.default,
    aten.scaled_dot_product_attention.default,
}  # fmt: skip
"""What may multiply two activations."""

LINEARS_IN_OTHER_WORDS = frozenset((aten.einsum.default, aten.tensordot.default))
GROUPED_PRODUCT = "transformers.grouped_mm_fallback.default"
"""An operator that torch alone does not have, by its name."""

KNOWN_NAMESPACES = frozenset(("aten", "prim", "prims", "higher_order", "quantized_decomposed"))
"""Operators of any other are custom ones, of which nothing is known."""

PLAIN_PRODUCTS = frozenset((aten.mm.default, aten.matmul.default))
GEMMS = PLAIN_PRODUCTS | {aten.linear.default, aten.addmm.default, aten.bmm.default}
BIAS_THIRD = CONVOLUTIONS | {aten.linear.default}
"""Layers whose third argument is the bias."""

PRODUCERS: dict[Any, tuple[int, int]] = {
    aten.layer_norm.default: (2, 1), aten.native_layer_norm.default: (2, 1), aten.linear.default: (1, 2),
}  # fmt: skip
"""Calls whose result is divided by dividing their weight and bias: the position of the two, and the weight's rank."""

# --- Views and what passes values on ---

SAME_MEMORY = frozenset((aten.detach.default, aten.alias.default, aten.detach_.default))
"""Views of a whole value, in its own shape."""

DROPOUTS = frozenset((aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default))
"""In eval mode they return their input itself."""

VIEWS = frozenset(
    (aten.t.default, aten.permute.default, aten.transpose.int, aten.detach.default, aten.alias.default)
)  # fmt: skip
"""Views that keep every element of a constant."""

TRANSPOSITIONS = frozenset((aten.transpose.int, aten.permute.default))

EXPANSIONS = frozenset((
    aten.expand.default, aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unsqueeze.default,
    aten.clone.default,
))  # fmt: skip
"""What decompositions write around a matrix that multiplies a batch."""

OVERLAPPING = frozenset((aten.unfold.default, aten.as_strided.default))
"""Views whose elements may share memory, besides those with a stride of 0."""

PARTS_AND_VIEWS = VIEWS | {
    aten.numpy_T.default, aten.mT.default, aten.view.default, aten.reshape.default, aten.expand.default,
    aten.unsqueeze.default, aten.clone.default, aten.to.dtype, aten._to_copy.default, aten.contiguous.default,
    aten.select.int, aten.slice.Tensor, aten.squeeze.dim, aten._unsafe_view.default, aten.to.dtype_layout,
    aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.chunk.default, operator.getitem,
}  # fmt: skip
"""What gives a tensor again, a part of it, or a copy."""

CHANNELWISE = frozenset((aten.contiguous.default, aten.clone.default, aten.relu.default))
"""What a positive factor of a channel passes through."""

SCALE_AND_SHIFT = frozenset((aten.mul.Tensor, aten.add.Tensor))
TRIVIAL_STEPS = SCALE_AND_SHIFT | {
    aten.t.default, aten.view.default, aten.reshape.default, aten.expand.default, aten.permute.default,
    aten.unsqueeze.default, aten.squeeze.dim, aten._to_copy.default, aten.clone.default, aten.to.dtype,
    aten.detach.default, aten.alias.default,
}  # fmt: skip
"""What decompositions write around a layer."""

SCALAR_ADDS = frozenset((aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.rsub.Scalar))

PASSING = frozenset((
    aten.dropout.default, aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.clone.default,
    aten.contiguous.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.max_pool2d.default, aten.max_pool1d.default, aten.avg_pool2d.default, aten.avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool1d.default, aten.mean.dim, aten.slice.Tensor,
    aten.select.int,
))  # fmt: skip
"""Calls after which nothing is smaller than before."""

# --- Activations ---

NONNEGATIVE = frozenset((
    aten.relu.default, aten.relu6.default, aten.softmax.int, aten._softmax.default, aten.sigmoid.default,
    aten.exp.default, aten.abs.default, aten.softplus.default, aten.square.default,
))  # fmt: skip
BOUNDED_BELOW = frozenset(
    (aten.gelu.default, aten.silu.default, aten.hardswish.default, aten.mish.default, aten.elu.default)
)
"""Negative only a little."""

BATCH_NORMS = frozenset((aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default))

OUTPUT_CHANNEL_AXIS: dict[Any, int] = {
    aten.linear.default: 0, **dict.fromkeys(PLAIN_CONVOLUTIONS, 0), **dict.fromkeys(TRANSPOSED_CONVOLUTIONS, 1),
}  # fmt: skip
"""Of the weight of each call that a batch norm can be folded into."""

# --- Random numbers, by base name ---

DRAWS = frozenset((
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "normal",
    "normal_functional", "multinomial", "poisson", "binomial", "uniform", "exponential", "geometric", "cauchy",
    "log_normal", "random", "_standard_gamma", "_sample_dirichlet", "rand_and_normalize",
))  # fmt: skip
DRAWS_IN_TRAINING = frozenset((
    "dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "rrelu",
))  # fmt: skip
