"""Quantized activations as tensor functions, one formula each: the simulation runs them on tensors, the reference and
the ONNX artifact insert them into graphs.

Per token, with ``s`` the extent of a row over ``axes`` and ``low`` its smallest value where rows are counted from it:

    rows = (x - low) / s                    x' = round(rows * steps) * (s / steps) + low

TorchScript alone writes it out anew (``fewbit/runtime/rows.py``): its kernel takes ``rows`` and rounds them itself, and
two reductions without a temporary are faster there than ``abs`` and one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fewbit.runtime.kernels import TINY
from fewbit.runtime.record import PerToken

Range = Literal["symmetric", "nonnegative", "affine"]


def scaled_rows(x: Tensor, axes: tuple[int, ...], range: Range) -> tuple[Tensor, Tensor, Tensor | None]:
    """(rows, scale, low) of float32 ``x``: rows in -1..1, or in 0..1 where they are counted from 0 or from ``low``,
    which is None otherwise. ``scale`` and ``low`` keep the axes, of size 1."""
    low = x.amin(axes, keepdim=True) if range == "affine" else None
    above = x if low is None else x - low
    extents = above.abs() if range == "symmetric" else above
    scale = extents.amax(axes, keepdim=True).clamp_min(TINY)
    return above / scale, scale, low


def quantize_per_token(x: Tensor, scheme: PerToken) -> Tensor:
    """Float32 ``x`` quantized and dequantized, each slice over the scheme's axes by its own range."""
    rows, scale, low = scaled_rows(x, scheme.axes, scheme.range)
    steps = float(scheme.steps)
    result = torch.round(rows * steps) * (scale / steps)
    return result if low is None else result + low


def quantize_at(x: Tensor, scale: float, zero_point: float, qmin: float, qmax: float) -> Tensor:
    """Float32 ``x`` quantized and dequantized at a fixed range."""
    steps = torch.round(x / scale) + zero_point
    return (steps.clamp(qmin, qmax) - zero_point) * scale
