"""The int8 linear: one definition of its arithmetic, which every artifact follows.

Each token (row of the input) is scaled by its own largest magnitude, so a sample's result does not depend on what else
is in the batch, and one outlier token costs the others nothing:

    s = max(|x|, over the last axis)            q = round(x / s * LEVELS)
    y = s * (sum_k q[k] * w[n, k]) * scale[n] / LEVELS + bias[n]

``quantized::linear_with_input_q_dq_qweight_dq_output_fp32`` computes the middle part in one call (fbgemm: quantize,
u8*s8 GEMM, dequantize). ``quantized::linear_dynamic``, which takes one range for the whole batch, was 10 dB further
from float (1024x384x384 with one loud channel: 26 dB against 36 dB). docs/adr/0002 has the times: lower in two of
three shapes, higher in the third.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.engine.weights import QuantizedWeight

KERNEL = "quantized::linear_with_input_q_dq_qweight_dq_output_fp32"
TINY = 1e-30  # a row of zeros is scaled by this instead of dividing by zero

FULL_LEVELS, REDUCED_LEVELS = 127, 63
FULL_RANGE_MAX_IN_FEATURES = (2**31 - 1) // (255 * 127)  # beyond it the int32 accumulator could wrap


@dataclass(frozen=True)
class Activation:
    """Symmetric uint8 around ``zero_point``: ``levels`` steps to either side."""

    levels: int

    @property
    def scale(self) -> float:
        return 1.0 / self.levels

    @property
    def zero_point(self) -> int:
        return self.levels + 1

    @property
    def reduced(self) -> bool:
        return self.levels == REDUCED_LEVELS


def activation_for(in_features: int, vnni: bool) -> Activation:
    """Full range where VNNI sums u8*s8 products in 32 bits. Without it pairs are summed in int16 and saturate, unless
    activations keep to 7 bits: 2 * 127 * 127 < 2**15."""
    return Activation(FULL_LEVELS if vnni and in_features <= FULL_RANGE_MAX_IN_FEATURES else REDUCED_LEVELS)


def has_vnni() -> bool:
    """Whether this machine's kernels multiply u8*s8 without an int16 in between."""
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    return "avx512_vnni" in flags and torch.backends.cpu.get_cpu_capability() == "AVX512"


def pack(weight: QuantizedWeight) -> Any:
    """The weight as fbgemm keeps it: ``LinearPackedParamsBase``, without bias."""
    values = torch._make_per_channel_quantized_tensor(
        weight.values, weight.scale.double(), torch.zeros_like(weight.scale, dtype=torch.long), 0
    )
    return torch.ops.quantized.linear_prepack(values, None)


def int8_linear(x: Tensor, packed: Any, activation: Activation) -> Tensor:
    """``x @ weight.T`` on the int8 kernel, without bias: float32 [..., in_features] -> float32 [..., out_features]."""
    rows = x if x.dim() > 1 else x.unsqueeze(0)
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(TINY)
    product: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        rows / scale, activation.scale, activation.zero_point, packed
    )
    product = product * scale
    return product if x.dim() > 1 else product.squeeze(0)
