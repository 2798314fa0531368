"""What quantization does to a weight: its distribution, and its signal over noise at every granularity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.contract.report import Histogram, WeightStats
from fewbit.contract.spec import Granularity, WeightRange, Weights
from workers.engine.quantization.weights import (
    QMAX,
    Grid,
    QuantizedWeight,
    blocks_of,
    decibels,
    grid_for,
    quantize_weight,
    rounded_blocks,
    scale_index,
    sqnr_db,
)

OUTLIER_SIGMAS = 6.0
HISTOGRAM_BINS = 64
SAMPLED = 2**17  # elements of a weight that settings are tried on
GROUP_SIZES = (32, 16, 8)


def weight_stats(
    weight: Tensor, quantized: QuantizedWeight, reduce: tuple[int, ...] = (1,), range_: WeightRange = "mse"
) -> WeightStats:
    """The float weight's statistics, and what this quantization does to it. ``weight`` must not be empty.

    ``sqnr_db`` has per_tensor, per_channel and, where groups divide it, per_group, at the quantized weight's bits, and
    its own granularity. Of a large weight, groups and the mse-best range are tried on a share of its rows.
    """
    low, high, mean = _extent(weight)
    unit = max(-low, high) or 1.0
    grid = grid_for(weight, quantized.granularity, quantized.group_size, reduce)
    sums = _sums(weight, quantized, grid, (low, high, mean, unit))
    spread = math.sqrt(sums.square)
    noises = {
        name: sums.noise if name == quantized.granularity else _noise(weight, name, quantized.dtype, reduce, unit)
        for name in dict.fromkeys(("per_tensor", "per_channel", quantized.granularity))
    }
    sqnr = {name: round(decibels(sums.power, noise), 2) for name, noise in noises.items()}
    part = _some_rows(weight, reduce)
    size = _group_size(part, reduce)
    if size and quantized.granularity != "per_group":
        sqnr["per_group"] = _sqnr_at(part, Weights(granularity="per_group", group_size=size), quantized, reduce)
    return WeightStats(
        min=low,
        max=high,
        mean=mean,
        std=spread * unit,
        kurtosis=sums.fourth / sums.square**2 if sums.square else 0.0,
        outlier_ratio=_outliers(weight, mean, OUTLIER_SIGMAS * spread * unit, max(high - mean, mean - low)),
        zeroed_ratio=sums.zeroed,
        saturated_ratio=sums.saturated,
        sqnr_db=sqnr,
        mse_range_gain_db=_mse_gain_db(part, quantized, range_, reduce),
        histogram=Histogram(edges=_edges(low, high), counts=sums.counts),
    )


def _some_rows(weight: Tensor, reduce: tuple[int, ...]) -> Tensor:
    """At most about ``SAMPLED`` elements: whole rows, evenly chosen."""
    kept = [axis for axis in range(weight.dim()) if axis not in reduce]
    axis = max(kept, key=weight.shape.__getitem__, default=None)
    if axis is None or weight.numel() <= SAMPLED:
        return weight
    count = max(1, SAMPLED * weight.shape[axis] // weight.numel())
    return weight.index_select(axis, torch.linspace(0, weight.shape[axis] - 1, count).long())


def _group_size(weight: Tensor, reduce: tuple[int, ...]) -> int | None:
    length = max((weight.shape[axis] for axis in reduce), default=0)
    return next((size for size in GROUP_SIZES if length > size and length % size == 0), None)


def _sqnr_at(weight: Tensor, settings: Weights, like: QuantizedWeight, reduce: tuple[int, ...]) -> float:
    given = quantize_weight(weight, settings.model_copy(update={"dtype": like.dtype}), reduce)
    return round(sqnr_db(weight.detach(), given.dequantize()), 2)


def _mse_gain_db(
    weight: Tensor, quantized: QuantizedWeight, range_: WeightRange, reduce: tuple[int, ...]
) -> float | None:
    if range_ == "mse":
        return 0.0
    now = Weights(granularity=quantized.granularity, group_size=quantized.group_size, range=range_)
    best = now.model_copy(update={"range": "mse"})
    gain = _sqnr_at(weight, best, quantized, reduce) - _sqnr_at(weight, now, quantized, reduce)
    return round(max(gain, 0.0), 2)


@dataclass(frozen=True)
class _Sums:
    """Means over one weight, in units of its largest magnitude; ``zeroed`` and ``saturated`` are shares."""

    square: float
    fourth: float
    power: float
    noise: float
    zeroed: float
    saturated: float
    counts: tuple[int, ...]


def _extent(weight: Tensor) -> tuple[float, float, float]:
    """Smallest, largest and mean value."""
    low, high, total = math.inf, -math.inf, 0.0
    for block in _blocks(weight):
        ends = torch.aminmax(block)
        low, high = min(low, float(ends.min)), max(high, float(ends.max))
        total += float(block.sum(dtype=torch.float64))
    return low, high, total / weight.numel()


def _sums(weight: Tensor, quantized: QuantizedWeight, grid: Grid, about: tuple[float, float, float, float]) -> _Sums:
    low, high, mean, unit = about
    totals, counts = torch.zeros(6, dtype=torch.float64), torch.zeros(HISTOGRAM_BINS, dtype=torch.long)
    source, values, scale = grid.view(weight.detach()), grid.view(quantized.values), grid.steps(quantized.scale)
    for index in (index for pieces in blocks_of(grid) for index in pieces):
        block, rounded, steps = source[index].to(torch.float32), values[index], scale[scale_index(index, grid)]
        limit = steps * (QMAX[quantized.dtype] * (1 + 1e-6))
        saturated = int((block.abs() > limit).count_nonzero())
        zeroed = int(block.count_nonzero()) - int(rounded.count_nonzero())
        scaled = block / unit  # so that no square over- or underflows
        noise = _dot((rounded * (steps / unit)).sub_(scaled))
        power, centred = _dot(scaled), scaled.sub(mean / unit)
        square, fourth = _dot(centred), _dot(centred.square())
        totals += torch.tensor([square, fourth, power, noise, zeroed, saturated], dtype=torch.float64)
        counts += _counts(block, low, high)
    binned = counts if low < high else counts[:1]
    square, fourth, power, noise, zeroed_share, saturated_share = (totals / weight.numel()).tolist()
    return _Sums(square, fourth, power, noise, zeroed_share, saturated_share, tuple(binned.tolist()))


def _noise(weight: Tensor, granularity: Granularity, dtype: str, reduce: tuple[int, ...], unit: float) -> float:
    """Mean squared error of the whole range at this granularity, in units of ``unit``."""
    total, grid = 0.0, grid_for(weight, granularity, None, reduce)
    for _, block, rounded, scale in rounded_blocks(weight, grid, "minmax", QMAX[dtype]):
        total += _dot((rounded * (scale / unit)).sub_(block / unit))
    return total / weight.numel()


def _outliers(weight: Tensor, mean: float, limit: float, farthest: float) -> float:
    """The share farther than ``limit`` from the mean; ``farthest`` tells when there is none to count."""
    if farthest <= limit:
        return 0.0
    return sum(int(((block - mean).abs_() > limit).count_nonzero()) for block in _blocks(weight)) / weight.numel()


def _blocks(weight: Tensor) -> Iterator[Tensor]:
    for pieces in blocks_of(Grid(tuple(weight.shape), ())):
        for index in pieces:
            yield weight.detach()[index].to(torch.float32)


def _counts(block: Tensor, low: float, high: float) -> Tensor:
    """int64 [HISTOGRAM_BINS]; ``torch.histc`` took four times as long."""
    width = (high - low) / HISTOGRAM_BINS
    exact = block if 1e-30 < width < 1e30 else block.double()
    bins = (exact - low).div_(width or 1.0).clamp_(0, HISTOGRAM_BINS - 1).to(torch.uint8)
    return torch.bincount(bins.flatten(), minlength=HISTOGRAM_BINS)


def _dot(block: Tensor) -> float:
    flat = block.flatten()
    return float(flat @ flat)


def _edges(low: float, high: float) -> tuple[float, ...]:
    return tuple(torch.linspace(low, high, HISTOGRAM_BINS + 1).tolist()) if low < high else (low, high)
