"""Weights to int8: symmetric, zero point 0, per output channel or per tensor, and what that does to them.

Scheme: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference". There is no floor under the scale: weights of 1e-8 keep their seven bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.report import SQNR_CAP_DB, Histogram, WeightStats
from fewbit.spec import Clip, Percentile, WeightRange, Weights

QMAX = 127
OUTLIER_SIGMAS = 6.0
HISTOGRAM_BINS = 64
SMALLEST_FLOAT32_SCALE = 1e-30  # below it float32 quotients lose bits: denormals are near
MSE_STEPS = 40  # candidates for the clip, from 100 % of the range down to MSE_SMALLEST
MSE_SMALLEST = 0.4


@dataclass(frozen=True)
class QuantizedWeight:
    """``values``: int8 [out_features, in_features], contiguous. ``scale``: float32 [out_features], all equal when
    per tensor. ``weight ~ values * scale[:, None]``."""

    values: Tensor
    scale: Tensor
    granularity: str

    def dequantize(self) -> Tensor:
        return self.values.to(torch.float32) * self.scale[:, None]


def quantize_weight(weight: Tensor, weights: Weights) -> QuantizedWeight:
    """int8 values and scales of a finite float weight [out_features, in_features]."""
    weight = weight.to(torch.float32).contiguous()
    by_channel = weights.granularity == "per_channel"
    bound = clip_bound(weight if by_channel else weight.reshape(1, -1), weights.range)
    scale = (bound / QMAX).expand(weight.shape[0]).contiguous()
    return QuantizedWeight(_round(weight, scale), scale, weights.granularity)


def clip_bound(rows: Tensor, range_: WeightRange) -> Tensor:
    """The largest representable magnitude of each row: float32 [rows], never 0."""
    magnitude = rows.abs()
    if range_ == "mse":
        bound = _mse_bound(rows)
    elif isinstance(range_, Percentile):
        bound = _percentile(magnitude, range_.percentile / 100)
    elif isinstance(range_, Clip):
        limit = max(abs(range_.clip[0]), abs(range_.clip[1]))
        bound = magnitude.amax(1).clamp_max(limit)
    else:
        bound = magnitude.amax(1)
    return torch.where(bound > 0, bound, torch.ones_like(bound))


def weight_stats(weight: Tensor, quantized: QuantizedWeight) -> WeightStats:
    """The float weight's statistics, and what this quantization does to it."""
    weight = weight.to(torch.float32)
    std, mean = torch.std_mean(weight, correction=0)
    spread = float(std)
    centred = (weight - mean).div_(std) if spread > 0 else torch.zeros_like(weight)
    limit = quantized.scale[:, None] * QMAX
    return WeightStats(
        min=float(weight.amin()),
        max=float(weight.amax()),
        std=spread,
        kurtosis=float(centred.square().square().mean()) if spread > 0 else 0.0,
        outlier_ratio=_share(centred.abs() > OUTLIER_SIGMAS),
        zeroed_ratio=_share((quantized.values == 0) & (weight != 0)),
        saturated_ratio=_share(weight.abs() > limit * (1 + 1e-6)),
        sqnr_db={name: _weight_sqnr(weight, name, quantized) for name in ("per_tensor", "per_channel")},
        histogram=_histogram(weight),
    )


def sqnr_db(signal: Tensor, approximation: Tensor) -> float:
    """10 log10(E[signal^2] / E[(signal - approximation)^2]) in dB, within +-150; -150 when the noise is not finite."""
    unit = float(signal.abs().amax()) if signal.numel() else 0.0
    scaled = signal.to(torch.float32).flatten() / (unit or 1.0)  # so that squares of small signals do not vanish
    error = approximation.to(torch.float32).flatten() / (unit or 1.0) - scaled
    power, noise = float(scaled @ scaled), float(error @ error)
    if not math.isfinite(noise):
        return -SQNR_CAP_DB
    if noise == 0.0:
        return SQNR_CAP_DB
    return max(-SQNR_CAP_DB, min(SQNR_CAP_DB, 10 * math.log10(max(power, 1e-300) / noise)))


def _round(weight: Tensor, scale: Tensor) -> Tensor:
    if float(scale.amin()) < SMALLEST_FLOAT32_SCALE:
        weight, scale = weight.double(), scale.double()
    return torch.div(weight, scale[:, None]).round_().clamp_(-QMAX, QMAX).to(torch.int8)


def _mse_bound(rows: Tensor) -> Tensor:
    """The clip with the least squared error, by grid search along each row."""
    largest = rows.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    best, least = largest.clone(), torch.full_like(largest, torch.inf)
    for share in torch.linspace(1.0, MSE_SMALLEST, MSE_STEPS):
        scale = (largest * share / QMAX)[:, None]
        error = (torch.round(rows / scale).clamp_(-QMAX, QMAX) * scale - rows).square().sum(1)
        best = torch.where(error < least, largest * share, best)
        least = torch.minimum(error, least)
    return best


def _percentile(magnitude: Tensor, share: float) -> Tensor:
    index = min(magnitude.shape[1], max(1, round(share * magnitude.shape[1])))
    return torch.kthvalue(magnitude, index, dim=1).values


def _weight_sqnr(weight: Tensor, granularity: str, quantized: QuantizedWeight) -> float:
    if quantized.granularity != granularity:
        quantized = quantize_weight(weight, Weights.model_validate({"granularity": granularity}))
    return round(sqnr_db(weight, quantized.dequantize()), 2)


def _histogram(weight: Tensor) -> Histogram:
    low, high = float(weight.amin()), float(weight.amax())
    if low == high:
        return Histogram(edges=(low, high), counts=(weight.numel(),))
    counts = torch.histc(weight, bins=HISTOGRAM_BINS, min=low, max=high)
    edges = torch.linspace(low, high, HISTOGRAM_BINS + 1)
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(int(count) for count in counts))


def _share(mask: Tensor) -> float:
    return float(mask.float().mean())
