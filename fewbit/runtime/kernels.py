"""The int8 kernels of torch on a CPU, and what this machine has of them.

Per token: each row of the input is scaled by its own largest magnitude, so a sample's result does not depend on what
else is in the batch, and one outlier token costs the others nothing:

    s = max(|x|, over the last axis)            q = round(x / s * LEVELS)
    y = s * (sum_k q[k] * w[n, k]) * scale[n] / LEVELS + bias[n]

``quantized::linear_with_input_q_dq_qweight_dq_output_fp32`` computes the middle part in one call (fbgemm: quantize,
u8*s8 GEMM, dequantize). ``quantized::linear_dynamic``, which takes one range for the whole batch, was 10 dB further
from float (1024x384x384 with one loud channel: 26 dB against 36 dB).

``quantized::conv*d_dynamic`` is not used: it requantizes its output at scale 1 and zero point 0 (torch 2.13), which
leaves little of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewbit.runtime.torch_internals import per_channel_tensor

LINEAR = "quantized::linear_with_input_q_dq_qweight_dq_output_fp32"
TINY = 1e-30  # a row of zeros is scaled by this instead of dividing by zero

FULL_LEVELS, REDUCED_LEVELS = 127, 63
FULL_RANGE_MAX_IN_FEATURES = (2**31 - 1) // (255 * 127)  # beyond it the int32 accumulator could wrap
MAX_IN_FEATURES = (2**31 - 1) // (127 * 127)  # the same for seven bits


def has_vnni() -> bool:
    """Whether this machine's kernels multiply u8*s8 without an int16 in between."""
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    return "avx512_vnni" in flags and torch.backends.cpu.get_cpu_capability() == "AVX512"


def quantized_tensor(values: Tensor, scale: Tensor, axis: int = 0) -> Tensor:
    """``values`` (int8) with one ``scale`` for each index of ``axis``, as the quantized kernels take a weight."""
    scales = scale.flatten().expand(values.shape[axis]).to(torch.float64).contiguous()
    zeros = torch.zeros(len(scales), dtype=torch.long)
    return per_channel_tensor(values.contiguous(), scales, zeros, axis)


def pack_linear(values: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    """[out_features, in_features] as fbgemm keeps it: ``LinearPackedParamsBase``."""
    return torch.ops.quantized.linear_prepack(quantized_tensor(values, scale), bias)


def pack_experts(values: Tensor, scale: Tensor) -> list[Any]:
    """[experts, in_features, out_features]: one packed linear for each."""
    scale = scale.expand(values.shape[0], 1, values.shape[2])
    return [pack_linear(value.t(), steps.flatten()) for value, steps in zip(values, scale, strict=True)]


def pack_convolution(
    values: Tensor, scale: Tensor, bias: Tensor | None, strides: list[int], paddings: list[int], dilations: list[int],
    groups: int,
) -> Any:  # fmt: skip
    """[out_channels, in_channels / groups, *kernel]: ``Conv*dPackedParamsBase``."""
    prepack = getattr(torch.ops.quantized, f"conv{values.dim() - 2}d_prepack")
    return prepack(quantized_tensor(values, scale), bias, strides, paddings, dilations, groups)


def pack_cell(inner: tuple[Tensor, Tensor], hidden: tuple[Tensor, Tensor], bias: tuple[Tensor, Tensor] | None) -> Any:
    """One direction of one recurrent layer: (values, scale) of the input's and of the hidden state's weight."""
    first, second = bias or (None, None)
    zeros = torch.zeros(inner[0].shape[0])
    return torch.ops.quantized.make_quantized_cell_params_dynamic(
        pack_linear(*inner, first), pack_linear(*hidden, second),
        zeros if first is None else first, zeros if second is None else second, True,
    )  # fmt: skip


def pack_int4(values: Tensor) -> Tensor:
    """int4 [out_features, in_features], symmetric, as ``aten::_weight_int4pack_mm_for_cpu`` takes it: uint8."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values.to(torch.int32) + 8, 1)
    return packed


def int4_scales(scale: Tensor) -> Tensor:
    """[out_features, groups] to [groups, out_features, (scale, zero)], bfloat16: weight = (q - 8) * scale + zero."""
    return torch.stack((scale.t(), torch.zeros_like(scale.t())), dim=-1).to(torch.bfloat16).contiguous()
