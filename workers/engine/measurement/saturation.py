"""Integer products on other CPUs than this one: u8*s8 pairs summed in int16, which clamps.

Without VNNI, AVX2 and AVX-512 multiply eight-bit activations and weights with ``vpmaddubsw``: two neighbouring products
are added in sixteen bits and clamped to [-32768, 32767] before they are widened (Intel SDM, PMADDUBSW; pytorch/FBGEMM).
VNNI's ``vpdpbusd`` adds four in 32 bits. Here the same integers go through both sums, for a share of rows and output
channels, in the order of a linear's input features (a convolution's patch, channel by channel).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewbit.contract.report import TargetSaturation
from fewbit.runtime.kernels import TINY
from fewbit.runtime.record import PerToken
from workers.engine.graph.layers import Use
from workers.engine.quantization.arithmetic import Arithmetic
from workers.engine.quantization.observers import QParams
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.weights import sqnr_db

aten = torch.ops.aten

LOWEST, HIGHEST = -(2**15), 2**15 - 1
ROWS, OUTPUTS = 32, 64
MOST_PAIRS = 2**22  # products of one layer looked at
PAIRWISE = ("avx2", "avx512")  # sum pairs in int16


def simulate_saturation(
    quantized: QuantizedLayer, use: Use, x: Tensor, qparams: QParams | None
) -> dict[str, TargetSaturation] | None:
    """The saturation of one call by kind of CPU. ``x``: its float input. None where the layer computes no integer
    product of two eight-bit operands, or cannot be written as rows times columns."""
    operands = _integer_operands(quantized, use, x, qparams)
    if operands is None:
        return None
    codes, zero_points, scale, expected, columns = operands
    exact = codes.float() @ columns.t()
    share, clamped = _sum_pairs_in_int16(codes, columns)
    shift = zero_points * columns.sum(1)
    targets = dict.fromkeys(PAIRWISE, (share, clamped)) | {"vnni": (0.0, exact)}
    return {
        name: TargetSaturation(
            saturated_ratio=round(ratio, 6), output_sqnr_db=round(sqnr_db(expected, (sums - shift) * scale), 2)
        )
        for name, (ratio, sums) in targets.items()
    }


Integers = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _integer_operands(quantized: QuantizedLayer, use: Use, x: Tensor, qparams: QParams | None) -> Integers | None:
    """(codes [rows, k] uint8 as float, zero points, scales of the sums, the float result [rows, n], weights [n, k])."""
    arithmetic, weight = quantized.arithmetic, quantized.weights[0]
    if arithmetic.mode not in ("per_token", "static") or weight.dtype != "int8" or weight.axis is not None:
        return None
    rows, columns, scale, floats = _sample_matrix(quantized, use, x)
    if rows is None or not len(rows):
        return None
    if arithmetic.mode == "static":
        if qparams is None:
            return None
        codes = (torch.round(rows / qparams.scale) + qparams.zero_point).clamp(qparams.qmin, qparams.qmax)
        return codes, torch.tensor(float(qparams.zero_point)), scale * qparams.scale, rows @ floats.t(), columns
    codes, zero_point, steps = _quantize_rows(rows, arithmetic)
    expected = rows @ floats.t()
    if arithmetic.range == "affine":  # each row's lowest value is subtracted, and comes back through the bias
        expected = expected - rows.amin(1, keepdim=True) * (columns * scale.t()).sum(1)
    return codes, zero_point, scale * steps, expected, columns


def _quantize_rows(rows: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel's operands: uint8 values, their zero point, and the step of each row [rows, 1]."""
    scheme = PerToken(levels=arithmetic.levels, axes=(-1,), range=arithmetic.range)
    low = rows.amin(1, keepdim=True) if arithmetic.range == "affine" else torch.zeros(len(rows), 1)
    extent = (rows - low).abs().amax(1, keepdim=True).clamp_min(TINY)
    codes = torch.round((rows - low) / extent * scheme.steps) + scheme.zero_point
    return codes.clamp(0, 255), torch.tensor(float(scheme.zero_point)), extent / scheme.steps


def _sample_matrix(quantized: QuantizedLayer, use: Use, x: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Some rows [r, k] float, and of some outputs the integer columns [n, k], scales [1, n], float columns [n, k]."""
    layer, weight = quantized.layer, quantized.weights[0]
    nothing = torch.zeros(0)
    if layer.kind == "linear" and use.axes == (-1,):
        rows = x.detach().reshape(-1, x.shape[-1])
    elif layer.kind == "convolution" and use.node.target is aten.conv2d.default:
        patches = _patches(use, x)
        if patches is None:
            return None, nothing, nothing, nothing
        rows = patches
    else:
        return None, nothing, nothing, nothing
    outputs = _even_indices(len(weight.values), OUTPUTS)
    columns = weight.values.flatten(1)[outputs].float()
    count = max(1, min(ROWS, MOST_PAIRS // max(1, columns.numel())))
    scale = weight.scale.expand(len(weight.values), *weight.scale.shape[1:]).flatten()[outputs]
    floats = layer.weight.detach().flatten(1)[outputs].float()
    return rows[_even_indices(len(rows), count)].float(), columns, scale[None], floats


def _patches(use: Use, x: Tensor) -> Tensor | None:
    """The patches of a few samples, for an ungrouped convolution: [rows, channels * kernel]."""
    names = ("stride", "padding", "dilation", "groups")
    given: dict[str, Any] = dict(zip(names, use.node.args[3:], strict=False)) | dict(use.node.kwargs)
    if given.get("groups", 1) != 1:
        return None
    kernel = use.operands[0].meta["val"].shape[2:]
    unfolded = torch.nn.functional.unfold(
        x[:2].detach().float(), tuple(kernel), given.get("dilation", 1), given.get("padding", 0), given.get("stride", 1)
    )
    return unfolded.transpose(1, 2).flatten(0, 1)


def _even_indices(size: int, count: int) -> Tensor:
    """At most ``count`` indices, evenly over ``size``."""
    return torch.linspace(0, size - 1, min(size, count)).round().long()


def _sum_pairs_in_int16(codes: Tensor, columns: Tensor) -> tuple[float, Tensor]:
    """The share of pairs that int16 clamps, and the sums of the clamped pairs: [rows, n]."""
    if float(codes.amax()) * float(columns.abs().amax()) * 2 <= HIGHEST:
        return 0.0, codes @ columns.t()
    if codes.shape[1] % 2:
        codes, columns = (torch.nn.functional.pad(matrix, (0, 1)) for matrix in (codes, columns))
    pairs = (len(codes), 1, -1, 2)
    first, second = codes.view(pairs).unbind(-1)
    left, right = columns.view(1, len(columns), -1, 2).unbind(-1)
    sums = first * left + second * right  # [rows, n, k / 2]: integers below 2**24, exact in float32
    clamped = sums.clamp(LOWEST, HIGHEST)
    return float((clamped != sums).float().mean()), clamped.sum(-1)
