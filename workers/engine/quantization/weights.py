"""Weights to int8 or int4: symmetric, zero point 0.

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

from fewbit.contract.report import SQNR_CAP_DB
from fewbit.contract.spec import Clip, Granularity, Percentile, WeightRange, Weights
from workers.errors import EngineError

QMAX = {"int8": 127, "int4": 7}
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
class Grid:
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
    grid = grid_for(weight, settings.granularity, settings.group_size, reduce)
    values = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(grid.scale_shape)
    target = grid.view(values)
    for index, _, rounded, steps in rounded_blocks(weight, grid, settings.range, QMAX[settings.dtype]):
        target[index] = rounded
        scale[scale_index(index, grid)] = steps
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
    return decibels(float(scaled @ scaled), float(error @ error))


def grid_for(weight: Tensor, granularity: Granularity, group_size: int | None, reduce: tuple[int, ...]) -> Grid:
    """Raises ``EngineError`` quantization-failed for a group size that does not divide the axis it is for."""
    shape = tuple(weight.shape)
    if granularity == "per_tensor":
        return Grid(shape, tuple(range(len(shape))))
    if granularity == "per_channel" or group_size is None:
        return Grid(shape, reduce)
    axis = max(reduce, key=shape.__getitem__)
    if shape[axis] % group_size:
        raise EngineError(
            "quantization-failed",
            f"weights of shape {shape}: axis {axis} does not divide into groups of {group_size}; "
            "choose a group_size that divides it, or per_channel",
        )
    split = (*shape[:axis], shape[axis] // group_size, group_size, *shape[axis + 1 :])
    return Grid(split, tuple(other + (other >= axis) for other in reduce), axis, group_size)


def rounded_blocks(
    weight: Tensor, grid: Grid, range_: WeightRange, qmax: int
) -> Iterator[tuple[Index, Tensor, Tensor, Tensor]]:
    """Block by block: where it lies in the grid, its float32 values, their integers (as floats) and their scales."""
    source = grid.view(weight.detach())
    for pieces in blocks_of(grid):
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


def blocks_of(grid: Grid) -> Iterator[list[Index]]:
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


def scale_index(index: Index, grid: Grid) -> Index:
    """Where the scales of a block lie."""
    return tuple(slice(None) if axis in grid.reduce else at for axis, at in enumerate(index))


def _scale(pieces: list[Tensor], grid: Grid, range_: WeightRange, qmax: int) -> Tensor:
    """float32, size 1 on reduced axes: one step of the integers for each row of ``pieces``."""
    kept = [axis for axis in range(len(grid.shape)) if axis not in grid.reduce]
    order = (*kept, *sorted(grid.reduce))
    rows = math.prod(pieces[0].shape[axis] for axis in kept)
    shape = [1 if axis in grid.reduce else size for axis, size in enumerate(pieces[0].shape)]
    return _bound([piece.permute(order).reshape(rows, -1) for piece in pieces], range_, qmax).div_(qmax).view(shape)


def _round(piece: Tensor, scale: Tensor, qmax: int) -> Tensor:
    """Divided by the scale: a product with 1 / scale would overflow near denormals."""
    return torch.div(piece, scale).round_().clamp_(-qmax, qmax)


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


def decibels(power: float, noise: float) -> float:
    """Within +-150; -150 when the noise is not finite."""
    if not math.isfinite(noise):
        return -SQNR_CAP_DB
    if noise == 0.0:
        return SQNR_CAP_DB
    return max(-SQNR_CAP_DB, min(SQNR_CAP_DB, 10 * math.log10(max(power, 1e-300) / noise)))
