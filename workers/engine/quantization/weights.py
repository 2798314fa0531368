"""Weights to int8 or int4: symmetric, zero point 0, and what that does to them.

A weight is any constant operand. ``reduce`` names the axes its product sums over; a scale covers all of those (per
channel), everything (per tensor), or a group of neighbours along the longest of them (per group). Weights are read in
blocks that fit the processor's cache, so a weight of any size costs its int8 copy and one block.

Scheme: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference". There is no floor under the scale: weights of 1e-8 keep their seven bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from fewbit.contract.report import SQNR_CAP_DB, Histogram, WeightStats
from fewbit.contract.spec import Clip, Granularity, Percentile, WeightRange, Weights
from workers.errors import EngineError

QMAX = {"int8": 127, "int4": 7}
OUTLIER_SIGMAS = 6.0
HISTOGRAM_BINS = 64
BLOCK = 2**18  # elements; 1 MB of float32 stays in cache while several passes read it
MSE_RATIO = 0.92  # each clip tried is this share of the one before
MSE_CLIPS = 64  # 0.92**64: clips down to 1/200 of the largest magnitude
MSE_FINE = (0.95, 0.97, 0.98, 0.99, 1.01, 1.02, 1.03, 1.05)  # then these, around the best

Index = tuple[slice, ...]


@dataclass(frozen=True)
class QuantizedWeight:
    """``values``: int8, contiguous, in the operand's own shape; int4 values lie in -7..7, unpacked. ``scale``: float32,
    as many axes as ``values``, size 1 on reduced axes; per group, ``axis`` holds one scale for each group of
    ``group_size`` neighbours. ``axis`` and ``group_size`` are None otherwise."""

    values: Tensor
    scale: Tensor
    granularity: Granularity
    dtype: Literal["int8", "int4"] = "int8"
    axis: int | None = None
    group_size: int | None = None

    def dequantize(self) -> Tensor:
        """float32, in the shape of ``values``."""
        if self.axis is None or self.group_size is None:
            return self.values.to(torch.float32) * self.scale
        shape, axis = self.values.shape, self.axis
        groups = self.values.view(*shape[:axis], -1, self.group_size, *shape[axis + 1 :])
        return groups.to(torch.float32).mul_(self.scale.unsqueeze(axis + 1)).view(shape)


@dataclass(frozen=True)
class _Grid:
    """Where scales go: ``shape`` is the operand's with its group axis split in two; one scale covers ``reduce``."""

    shape: tuple[int, ...]
    reduce: tuple[int, ...]
    axis: int | None = None
    group_size: int | None = None

    def view(self, tensor: Tensor) -> Tensor:
        """``tensor``, of the operand's shape and any strides, in this shape."""
        return tensor.view(self.shape)

    def steps(self, scale: Tensor) -> Tensor:
        """A ``QuantizedWeight``'s scale, broadcastable in this shape."""
        return scale if self.axis is None else scale.unsqueeze(self.axis + 1)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        return tuple(1 if axis in self.reduce else size for axis, size in enumerate(self.shape))


def quantize_weight(weight: Tensor, settings: Weights, reduce: tuple[int, ...] = (1,)) -> QuantizedWeight:
    """``weight`` (floating point, any shape and strides) in integers, as ``settings`` say.

    ``reduce`` are the axes its product sums over: (1,) for a linear's [out, in], (0,) for addmm's [in, out], (1, 2, 3)
    for a convolution's [out, in, kh, kw]. Raises ``EngineError`` quantization-failed for values that are not finite
    and for a group size that does not divide the longest of ``reduce``.
    """
    grid = _grid(weight, settings.granularity, settings.group_size, reduce)
    values = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(grid.scale_shape)
    target = grid.view(values)
    for index, _, rounded, steps in _rounded(weight, grid, settings.range, QMAX[settings.dtype]):
        target[index] = rounded
        scale[_of_scale(index, grid)] = steps
    if grid.axis is not None:
        scale = scale.squeeze(grid.axis + 1)
    return QuantizedWeight(values, scale, settings.granularity, settings.dtype, grid.axis, grid.group_size)


def clip_bound(rows: Tensor, range_: WeightRange, qmax: int = 127) -> Tensor:
    """The largest representable magnitude of each row of [rows, n]: float32 [rows], never 0."""
    return _bound([rows.to(torch.float32)], range_, qmax)


def sqnr_db(signal: Tensor, approximation: Tensor) -> float:
    """10 log10(E[signal^2] / E[(signal - approximation)^2]) in dB, within +-150; -150 when the noise is not finite."""
    unit = float(signal.abs().amax()) if signal.numel() else 0.0
    scaled = signal.to(torch.float32).flatten() / (unit or 1.0)  # so that squares of small signals do not vanish
    error = approximation.to(torch.float32).flatten() / (unit or 1.0) - scaled
    return _decibels(float(scaled @ scaled), float(error @ error))


def weight_stats(
    weight: Tensor, quantized: QuantizedWeight, reduce: tuple[int, ...] = (1,), range_: WeightRange = "mse"
) -> WeightStats:
    """The float weight's statistics, and what this quantization does to it. ``weight`` must not be empty.

    ``sqnr_db`` has per_tensor, per_channel and, where groups divide it, per_group, at the quantized weight's bits, and
    its own granularity. Of a large weight, groups and the mse-best range are tried on a share of its rows.
    """
    low, high, mean = _extent(weight)
    unit = max(-low, high) or 1.0
    grid = _grid(weight, quantized.granularity, quantized.group_size, reduce)
    sums = _sums(weight, quantized, grid, (low, high, mean, unit))
    spread = math.sqrt(sums.square)
    noises = {
        name: sums.noise if name == quantized.granularity else _noise(weight, name, quantized.dtype, reduce, unit)
        for name in dict.fromkeys(("per_tensor", "per_channel", quantized.granularity))
    }
    decibels = {name: round(_decibels(sums.power, noise), 2) for name, noise in noises.items()}
    part = _some_rows(weight, reduce)
    size = _group_size(part, reduce)
    if size and quantized.granularity != "per_group":
        decibels["per_group"] = _sqnr_at(part, Weights(granularity="per_group", group_size=size), quantized, reduce)
    return WeightStats(
        min=low,
        max=high,
        mean=mean,
        std=spread * unit,
        kurtosis=sums.fourth / sums.square**2 if sums.square else 0.0,
        outlier_ratio=_outliers(weight, mean, OUTLIER_SIGMAS * spread * unit, max(high - mean, mean - low)),
        zeroed_ratio=sums.zeroed,
        saturated_ratio=sums.saturated,
        sqnr_db=decibels,
        mse_range_gain_db=_mse_gain_db(part, quantized, range_, reduce),
        histogram=Histogram(edges=_edges(low, high), counts=sums.counts),
    )


SAMPLED = 2**17  # elements of a weight that settings are tried on
GROUP_SIZES = (32, 16, 8)


def _some_rows(weight: Tensor, reduce: tuple[int, ...]) -> Tensor:
    """At most about ``SAMPLED`` elements: whole rows, evenly chosen."""
    kept = [axis for axis in range(weight.dim()) if axis not in reduce]
    axis = max(kept, key=lambda each: weight.shape[each], default=None)
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


def _grid(weight: Tensor, granularity: Granularity, group_size: int | None, reduce: tuple[int, ...]) -> _Grid:
    shape = tuple(weight.shape)
    if granularity == "per_tensor":
        return _Grid(shape, tuple(range(len(shape))))
    if granularity == "per_channel" or group_size is None:
        return _Grid(shape, reduce)
    axis = max(reduce, key=lambda each: shape[each])
    if shape[axis] % group_size:
        raise EngineError(
            "quantization-failed",
            f"weights of shape {shape}: axis {axis} does not divide into groups of {group_size}; "
            "choose a group_size that divides it, or per_channel",
        )
    split = (*shape[:axis], shape[axis] // group_size, group_size, *shape[axis + 1 :])
    return _Grid(split, tuple(each + (each >= axis) for each in reduce), axis, group_size)


def _rounded(
    weight: Tensor, grid: _Grid, range_: WeightRange, qmax: int
) -> Iterator[tuple[Index, Tensor, Tensor, Tensor]]:
    """Block by block: where it lies in the grid, its float32 values, their integers (as floats) and their scales."""
    source = grid.view(weight.detach())
    for pieces in _pieces(grid):
        first = source[pieces[0]]
        if len(pieces) == 1:
            first = first.to(torch.float32)
            scale = _scale([first], grid, range_, qmax)
            yield pieces[0], first, _round(first, scale, qmax), scale
            continue
        scale = _scale([source[index] for index in pieces], grid, range_, qmax)
        for index in pieces:
            piece = source[index].to(torch.float32)
            yield index, piece, _round(piece, scale, qmax), scale


def _pieces(grid: _Grid) -> Iterator[list[Index]]:
    """Blocks of at most ``BLOCK`` elements; each list holds the blocks of the same scales."""
    kept = [axis for axis in range(len(grid.shape)) if axis not in grid.reduce]
    steps, size = list(grid.shape), math.prod(grid.shape)
    for axis in (*kept, *sorted(grid.reduce)):
        if size > BLOCK:
            steps[axis] = max(1, grid.shape[axis] * BLOCK // size)
            size = size // grid.shape[axis] * steps[axis]
    slices = [[slice(at, at + step) for at in range(0, n, step)] for n, step in zip(grid.shape, steps, strict=True)]
    for outer in product(*(slices[axis] if axis in kept else [slice(None)] for axis in range(len(steps)))):
        inner = (slices[axis] if axis in grid.reduce else [outer[axis]] for axis in range(len(steps)))
        yield list(product(*inner))


def _of_scale(index: Index, grid: _Grid) -> Index:
    return tuple(slice(None) if axis in grid.reduce else each for axis, each in enumerate(index))


def _scale(pieces: list[Tensor], grid: _Grid, range_: WeightRange, qmax: int) -> Tensor:
    """float32, size 1 on reduced axes: one step of the integers for each row of ``pieces``."""
    kept = [axis for axis in range(len(grid.shape)) if axis not in grid.reduce]
    order = (*kept, *sorted(grid.reduce))
    rows = math.prod(pieces[0].shape[axis] for axis in kept)
    shape = [1 if axis in grid.reduce else size for axis, size in enumerate(pieces[0].shape)]
    return _bound([piece.permute(order).reshape(rows, -1) for piece in pieces], range_, qmax).div_(qmax).view(shape)


def _round(piece: Tensor, scale: Tensor, qmax: int) -> Tensor:
    return (
        torch.div(piece, scale).round_().clamp_(-qmax, qmax)
    )  # a product with 1 / scale would overflow near denormals


def _bound(pieces: list[Tensor], range_: WeightRange, qmax: int) -> Tensor:
    """The clip of each row; ``pieces`` [rows, any] lie side by side. float32 [rows], never 0."""
    largest = torch.zeros(pieces[0].shape[0])
    for piece in pieces:  # one running maximum: small tensors kept between large ones pin the heap (glibc bug 14581)
        largest.copy_(torch.maximum(largest, piece.abs().amax(1)))
    if not bool(torch.isfinite(largest).all()):
        raise EngineError("quantization-failed", "the weights hold NaN or infinity; exclude the layer or repair them")
    if range_ == "mse":
        bound = _mse_bound(pieces, largest, qmax)
    elif isinstance(range_, Percentile):
        bound = _percentile(pieces, range_.percentile / 100)
    elif isinstance(range_, Clip):
        bound = largest.clamp_max(max(map(abs, range_.clip)))
    else:
        bound = largest
    bound = torch.where(bound > 0, bound, largest)  # a percentile of mostly zeros is 0
    return torch.where((bound > 0) & (largest > 0), bound, torch.ones_like(bound))  # kernels divide a bias by it


def _mse_bound(pieces: list[Tensor], largest: Tensor, qmax: int) -> Tensor:
    """The clip with the least squared error: ever smaller ones, until what is cut off alone costs more than the best,
    then finer steps around it."""
    largest = largest.clamp_min(torch.finfo(torch.float32).tiny)
    best, least = largest.clone(), torch.full_like(largest, torch.inf)
    for power in range(MSE_CLIPS):
        bound = largest * MSE_RATIO**power
        error, cut_off = _errors(pieces, bound, largest, qmax)
        best, least = torch.where(error < least, bound, best), torch.minimum(error, least)
        if bool((cut_off >= least).all()):
            break
    middle = best.clone()
    for share in MSE_FINE:
        bound = torch.minimum(middle * share, largest)
        error, _ = _errors(pieces, bound, largest, qmax)
        best, least = torch.where(error < least, bound, best), torch.minimum(error, least)
    return best


def _errors(pieces: list[Tensor], bound: Tensor, largest: Tensor, qmax: int) -> tuple[Tensor, Tensor]:
    """Each row's squared error under this clip, and the part of it that is cut off; in units of ``largest``."""
    step = (bound / qmax)[:, None]
    error, cut_off = torch.zeros_like(bound), torch.zeros_like(bound)
    for piece in pieces:
        steps = piece.to(torch.float32) / step
        inside = steps.clamp(-qmax, qmax)
        cut_off += torch.linalg.vector_norm(inside - steps, dim=1).square_()
        error += torch.linalg.vector_norm(inside.round_().sub_(steps), dim=1).square_()
    unit = (bound / largest / qmax).square_()
    return error * unit, cut_off * unit


def _percentile(pieces: list[Tensor], share: float) -> Tensor:
    """The magnitude that ``share`` of each row does not exceed: exact."""
    length = sum(piece.shape[1] for piece in pieces)
    rank = min(length, max(1, round(share * length)))
    if len(pieces) == 1:
        return torch.kthvalue(pieces[0].to(torch.float32).abs(), rank, dim=1).values
    return torch.stack([_ranked([piece[row] for piece in pieces], rank) for row in range(pieces[0].shape[0])])


def _ranked(pieces: list[Tensor], rank: int) -> Tensor:
    """The ``rank``-th smallest magnitude, without a copy of them all: non-negative floats order as their bits do, so
    one count of the upper 16 bits finds the lower ones' bin."""
    upper = sum(torch.bincount(_bits(piece) >> 16, minlength=2**15) for piece in pieces)
    assert isinstance(upper, Tensor)
    first = int(torch.searchsorted(upper.cumsum(0), rank))
    rank -= int(upper[:first].sum())
    lower = torch.zeros(2**16, dtype=torch.long)
    for piece in pieces:
        bits = _bits(piece)
        lower += torch.bincount(bits[bits >> 16 == first] & 0xFFFF, minlength=2**16)
    last = int(torch.searchsorted(lower.cumsum(0), rank))
    return torch.tensor((first << 16) | last, dtype=torch.int32).view(torch.float32)


def _bits(piece: Tensor) -> Tensor:
    return piece.to(torch.float32).abs().view(torch.int32)


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


def _sums(weight: Tensor, quantized: QuantizedWeight, grid: _Grid, about: tuple[float, float, float, float]) -> _Sums:
    low, high, mean, unit = about
    totals, counts = torch.zeros(6, dtype=torch.float64), torch.zeros(HISTOGRAM_BINS, dtype=torch.long)
    source, values, scale = grid.view(weight.detach()), grid.view(quantized.values), grid.steps(quantized.scale)
    for index in (index for pieces in _pieces(grid) for index in pieces):
        block, rounded, steps = source[index].to(torch.float32), values[index], scale[_of_scale(index, grid)]
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
    total, grid = 0.0, _grid(weight, granularity, None, reduce)
    for _, block, rounded, scale in _rounded(weight, grid, "minmax", QMAX[dtype]):
        total += _dot((rounded * (scale / unit)).sub_(block / unit))
    return total / weight.numel()


def _outliers(weight: Tensor, mean: float, limit: float, farthest: float) -> float:
    """The share farther than ``limit`` from the mean; ``farthest`` tells when there is none to count."""
    if farthest <= limit:
        return 0.0
    return sum(int(((block - mean).abs_() > limit).count_nonzero()) for block in _blocks(weight)) / weight.numel()


def _blocks(weight: Tensor) -> Iterator[Tensor]:
    for pieces in _pieces(_Grid(tuple(weight.shape), ())):
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


def _decibels(power: float, noise: float) -> float:
    if not math.isfinite(noise):
        return -SQNR_CAP_DB
    if noise == 0.0:
        return SQNR_CAP_DB
    return max(-SQNR_CAP_DB, min(SQNR_CAP_DB, 10 * math.log10(max(power, 1e-300) / noise)))
