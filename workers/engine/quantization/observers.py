"""Activation ranges for static quantization: watch tensors go by, then say where to clip.

Each observer keeps a few numbers or one histogram, however many samples it sees, and ignores NaN and infinity.

torchao 0.18 has observers of the same names; these are ours because on the same tensors its own put a floor of 1.2e-7
under the scale (a signal of 1e-8 became one value), raised on NaN, gave an infinite scale for infinity, and its
HistogramObserver took almost three times as long (4.3 ms against 1.5 ms for 2**20 values, one thread).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewbit.contract.spec import ActivationRange, Clip, Percentile
from workers.errors import EngineError

BINS = 8192  # an outlier of 1000 standard deviations leaves four bins to each; indices fit int16, which counts fastest
BLOCK = 2**18  # elements; 1 MB of float32 stays in cache while several passes read it
SMALLEST_EXPONENT = -120  # of a bin's width; its reciprocal is still a float32
SMALLEST_SCALE = 1e-30  # below it float32 quotients lose bits: denormals are near
AVERAGING = 0.01  # the share of the newest tensor in a moving average, as in torch.ao
HISTOGRAM_STEP = 1e-5  # the share of values trimmed at a time, as in torch.ao
MSE_SHARES = (  # of the bounds before: each list spans a step of the list above
    tuple(0.7**power for power in range(16)),
    (0.76, 0.82, 0.88, 0.94, 1.0, 1.08, 1.16, 1.24, 1.32),
    (0.96, 0.98, 1.0, 1.02, 1.04),
)
ENTROPY_BINS, ENTROPY_LEVELS = 2048, 128  # Migacz 2017
ENTROPY_STRIDE = 8  # every eighth bin: 3 ms instead of 30, and bounds within 5 % of those found trying each

Floats = NDArray[np.float64]
Bounds = tuple[float, float]
ActivationType = Literal["uint8", "int8"]


@dataclass(frozen=True)
class QParams:
    """Affine: ``q = clamp(round(x / scale) + zero_point, qmin, qmax)`` and ``x ~ (q - zero_point) * scale``; 0 is
    represented exactly (Jacob et al. 2018)."""

    scale: float
    zero_point: int
    qmin: int
    qmax: int


class Observer(Protocol):
    """Sees every value of one tensor of the model, a batch at a time."""

    def observe(self, x: Tensor) -> None:
        """Takes in a floating-point tensor of any shape, empty ones too."""
        ...

    def qparams(self, dtype: ActivationType, reduce_range: bool) -> QParams:
        """The scale and zero point of the range seen, widened to hold 0. ``reduce_range`` leaves one bit unused.
        Raises ``EngineError`` calibration-failed when no finite value was ``seen`` and the range depends on it."""
        ...

    @property
    def seen(self) -> bool:
        """Whether any finite value was observed."""
        ...


def observer_for(range_: ActivationRange) -> Observer:
    """A new observer that finds this range."""
    if isinstance(range_, Clip):
        return ClipObserver(range_.clip)
    if isinstance(range_, Percentile):
        share = range_.percentile / 100
        return HistogramObserver(lambda histogram, _: percentile_bounds(histogram, share))
    return _NAMED[range_]()


def fake_quantize(x: Tensor, q: QParams) -> Tensor:
    """``x`` after a round trip through integers, in its own shape and dtype: ``activations.quantize_at``, in place,
    since it runs on every value of the data."""
    steps = torch.div(x.to(torch.float32), q.scale).round_().add_(q.zero_point).clamp_(q.qmin, q.qmax)
    return steps.sub_(q.zero_point).mul_(q.scale).to(x.dtype)


class MinMaxObserver:
    """From the smallest to the largest value seen; exact, in whatever order and batches they come."""

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def observe(self, x: Tensor) -> None:
        for _, low, high in _finite_blocks(x):
            self._low, self._high = min(self._low, low), max(self._high, high)

    def qparams(self, dtype: ActivationType, reduce_range: bool) -> QParams:
        return _qparams(_seen(self, (self._low, self._high)), dtype, reduce_range)

    @property
    def seen(self) -> bool:
        return self._low <= self._high


class MovingAverageObserver:
    """``low += 0.01 (min(x) - low)`` for each tensor, ``high`` likewise (Jacob et al. 2018); order matters."""

    def __init__(self) -> None:
        self._bounds: Bounds | None = None

    def observe(self, x: Tensor) -> None:
        extents = [(low, high) for _, low, high in _finite_blocks(x)]
        if not extents:
            return
        low, high = min(low for low, _ in extents), max(high for _, high in extents)
        before = self._bounds or (low, high)
        self._bounds = (before[0] + AVERAGING * (low - before[0]), before[1] + AVERAGING * (high - before[1]))

    def qparams(self, dtype: ActivationType, reduce_range: bool) -> QParams:
        return _qparams(_seen(self, self._bounds or (0.0, 0.0)), dtype, reduce_range)

    @property
    def seen(self) -> bool:
        return self._bounds is not None


class ClipObserver:
    """The bounds the spec gives, whatever is seen."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._seen = False

    def observe(self, x: Tensor) -> None:
        self._seen = self._seen or any(True for _ in _finite_blocks(x))

    def qparams(self, dtype: ActivationType, reduce_range: bool) -> QParams:
        return _qparams(self._bounds, dtype, reduce_range)

    @property
    def seen(self) -> bool:
        return self._seen


class HistogramObserver:
    """Bounds that ``search`` finds in a histogram of everything seen, for a number of steps between them."""

    def __init__(self, search: Callable[[Histogram, int], Bounds]) -> None:
        self._search = search
        self.histogram = Histogram()

    def observe(self, x: Tensor) -> None:
        for block, low, high in _finite_blocks(x):
            self.histogram.add(block, low, high)

    def qparams(self, dtype: ActivationType, reduce_range: bool) -> QParams:
        _seen(self, (0.0, 0.0))
        qmin, qmax = _limits(dtype, reduce_range)
        return _qparams(self._search(self.histogram, qmax - qmin), dtype, reduce_range)

    @property
    def seen(self) -> bool:
        return self.histogram.low <= self.histogram.high


class Histogram:
    """Counts of values in bins that widen as the range grows.

    Bin ``first + i`` holds the values in ``[(first + i) * width, (first + i + 1) * width)``, and ``width`` is always
    the smallest power of two at which ``BINS`` cover 0 and all values seen. So bins widen by merging whole neighbours,
    and the counts are the same, exactly, in whatever order and batches values come.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.zeros = 0
        self.counts = torch.zeros(BINS, dtype=torch.long)
        self.first = -BINS // 2
        self._exponent = SMALLEST_EXPONENT

    @property
    def width(self) -> float:
        return 2.0**self._exponent

    def add(self, block: Tensor, low: float, high: float) -> None:
        """Counts a float32 ``block`` whose smallest and largest values are ``low`` and ``high``, both finite."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(min(self.low, 0.0), max(self.high, 0.0))
        bins = torch.empty_like(block)
        self.zeros += int(torch.eq(block, 0.0, out=bins).sum())  # exact; count_nonzero branches: 15 times as long
        bins = torch.mul(block, 1 / self.width, out=bins).floor_().sub_(self.first)
        self.counts += torch.bincount(bins.to(torch.int16), minlength=BINS)

    def _cover(self, low: float, high: float) -> None:
        exponent = self._exponent
        while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
            exponent += 1
        lowest, highest = math.floor(math.ldexp(low, -exponent)), math.floor(math.ldexp(high, -exponent))
        if exponent == self._exponent and self.first <= lowest and highest < self.first + BINS:
            return
        first = lowest - (BINS - 1 - highest + lowest) // 2
        filled = self.counts.nonzero().flatten()
        counts = torch.zeros_like(self.counts)
        counts.index_add_(0, ((filled + self.first) >> (exponent - self._exponent)) - first, self.counts[filled])
        self.counts, self.first, self._exponent = counts, first, exponent

    def magnitudes(self, bins: int) -> tuple[Floats, float]:
        """Counts of absolute values in at most ``bins`` bins from 0 up, the last one not empty; and their width."""
        positive = self.counts[max(0, -self.first) :].numpy().astype(np.float64)
        negative = self.counts[: max(0, -self.first)].numpy()[::-1].astype(np.float64)
        folded = np.zeros(BINS)
        folded[: positive.size] += positive
        folded[: negative.size] += negative
        folded = np.trim_zeros(folded, "b")
        merged = 1
        while folded.size > bins:
            folded, merged = np.pad(folded, (0, folded.size % 2)).reshape(-1, 2).sum(1), merged * 2
        return folded, self.width * merged


def percentile_bounds(histogram: Histogram, share: float) -> Bounds:
    """The magnitude that ``share`` of all values do not exceed, to either side, and no wider than what was seen."""
    counts, width = histogram.magnitudes(BINS)
    below = np.concatenate([[0.0], counts.cumsum()])
    return _within(histogram, float(np.interp(share * below[-1], below, np.arange(below.size))) * width)


def mse_bounds(histogram: Histogram, steps: int) -> Bounds:
    """The bounds with the least squared error of clipping and rounding: one after the other, in ever finer steps.

    The error is nearly convex in both: two tails that are cut off, and rounding noise that grows with their distance.
    """
    error = _SquaredError(histogram, steps)
    lowest, highest = low, high = error.low, error.high
    for shares in MSE_SHARES:
        for _ in range(2):
            low = min({max(lowest, low * share) for share in shares}, key=lambda bound: error(bound, high))
            high = min({min(highest, high * share) for share in shares}, key=lambda bound: error(low, bound))
    return low, high


def histogram_bounds(histogram: Histogram, steps: int) -> Bounds:
    """torch.ao's HistogramObserver: trim 1e-5 of the values, from the side that reaches farther for it, for as long as
    the squared error does not grow. It stops at the first rise, so it clips less than ``mse_bounds``."""
    error, below, zero = _SquaredError(histogram, steps), histogram.counts.numpy().cumsum(), -histogram.first
    total, alpha, beta = int(below[-1]), 0.0, 1.0
    low, high = min(zero, _bin_at(below, 1)), max(zero, _bin_at(below, total))
    bounds = error.low, error.high
    least = error(*bounds)
    while alpha < beta:
        next_low = min(zero, max(low, _bin_at(below, (alpha + HISTOGRAM_STEP) * total)))
        next_high = max(zero, min(high, _bin_at(below, (beta - HISTOGRAM_STEP) * total)))
        if (next_low, next_high) == (low, high):  # both bins hold more than a step: on to where one ends
            if low == high:
                break
            alpha, beta = (alpha, below[high - 1] / total) if high > zero else (below[low] / total, beta)
            continue
        if next_low - low > high - next_high:
            low, alpha = next_low, alpha + HISTOGRAM_STEP
        else:
            high, beta = next_high, beta - HISTOGRAM_STEP
        trial = error.bounds(low, high)
        if (now := error(*trial)) > least:
            break
        least, bounds = now, trial
    return bounds


def _bin_at(below: NDArray[np.int64], count: float) -> int:
    """The bin that holds the value of this rank; ``below`` are cumulated counts."""
    return int(np.searchsorted(below, count))


class _SquaredError:
    """What clipping to bounds and rounding to ``steps`` costs, exactly, if values are spread evenly in their bins.

    In units of a step, ``G(t) = n / 12 + r**3 / 3`` with ``n`` the nearest value left and ``r = t - n`` is an integral
    of the squared distance to it, inside the bounds and beyond; a bin's mean is the difference of ``G`` at its edges.
    Values that are exactly 0 cost nothing.
    """

    def __init__(self, histogram: Histogram, steps: int) -> None:
        self._steps, self._width, self._first = steps, histogram.width, histogram.first
        self.low, self.high = min(histogram.low, 0.0), max(histogram.high, 0.0)
        counts = histogram.counts.numpy().astype(np.float64)
        counts[-histogram.first] -= histogram.zeros
        start, stop = (math.floor(end / histogram.width) - histogram.first for end in (self.low, self.high))
        self._counts = counts[start : stop + 1]
        self._edges = np.arange(start, stop + 2, dtype=np.float64) + histogram.first

    def bounds(self, low: int, high: int) -> Bounds:
        """The outer edges of these bins, no wider than what was seen, and around 0."""
        outer = (self._first + low) * self._width, (self._first + high + 1) * self._width
        return min(0.0, max(self.low, outer[0])), max(0.0, min(self.high, outer[1]))

    def __call__(self, low: float, high: float) -> float:
        """The sum over all values, in squares of the histogram's width."""
        if low == high:
            return math.inf if self._counts.any() else 0.0
        step = (high - low) / self._steps / self._width
        zero_point = round(-low / (step * self._width))
        t = self._edges / step
        nearest = np.rint(t).clip(-zero_point, self._steps - zero_point)
        rest = t - nearest
        integral = nearest / 12 + rest * rest * rest / 3  # numpy's power took seven times as long
        return float(self._counts @ np.diff(integral)) * step**3


def entropy_bounds(histogram: Histogram, _: int) -> Bounds:
    """The magnitude at which the clipped distribution and its 128 levels differ least (Kullback-Leibler).

    Migacz 2017, "8-bit Inference with TensorRT". Zeros are left out: every clip represents them exactly, and after a
    ReLU they would outweigh all else.
    """
    counts, width = histogram.magnitudes(ENTROPY_BINS)
    counts[0] -= min(counts[0], histogram.zeros)
    sizes = range(ENTROPY_LEVELS, counts.size + 1, ENTROPY_STRIDE)
    divergences = [_divergence(counts, size) for size in (*sizes, counts.size)]
    best = (*sizes, counts.size)[int(np.argmin(divergences))]
    return _within(histogram, best * width)


def _divergence(counts: Floats, size: int) -> float:
    """KL(P || Q): P the first ``size`` bins with all that lies beyond in the last, Q their levels spread evenly."""
    kept = counts[:size]
    reference = kept.copy()
    reference[-1] += counts[size:].sum()
    level = np.arange(size) * ENTROPY_LEVELS // size
    filled = reference > 0
    members = np.bincount(level, filled, ENTROPY_LEVELS)
    spread = (np.bincount(level, kept, ENTROPY_LEVELS) / np.maximum(members, 1))[level]
    p, q = reference[filled] / reference.sum(), spread[filled] / max(kept.sum(), 1.0)
    return float((p * np.log(p / np.maximum(q, 1e-12))).sum()) if p.size else 0.0


def _within(histogram: Histogram, magnitude: float) -> Bounds:
    return max(histogram.low, -magnitude), min(histogram.high, magnitude)


def _finite_blocks(x: Tensor) -> Iterator[tuple[Tensor, float, float]]:
    """The finite values of ``x``, a block at a time: float32 [n], n > 0; and the smallest and largest of them."""
    flat = x.detach().reshape(-1)
    for at in range(0, flat.numel(), BLOCK):
        block = flat[at : at + BLOCK].to(torch.float32)
        low, high = map(float, torch.aminmax(block))
        if not (math.isfinite(low) and math.isfinite(high)):
            block = block[torch.isfinite(block)]
            if not block.numel():
                continue
            low, high = map(float, torch.aminmax(block))
        yield block, low, high


def _seen(observer: Observer, bounds: Bounds) -> Bounds:
    if not observer.seen:
        raise EngineError(
            "calibration-failed",
            "a tensor to quantize had no finite value in the calibration data; give data that reaches its layer, "
            "or leave the layer float",
        )
    return bounds


def _limits(dtype: ActivationType, reduce_range: bool) -> tuple[int, int]:
    half = 64 if reduce_range else 128
    return (0, 2 * half - 1) if dtype == "uint8" else (-half, half - 1)


def _qparams(bounds: Bounds, dtype: ActivationType, reduce_range: bool) -> QParams:
    qmin, qmax = _limits(dtype, reduce_range)
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    scale = max((high - low) / (qmax - qmin), SMALLEST_SCALE) if low < high else 1.0
    return QParams(scale, max(qmin, min(qmax, round(qmin - low / scale))), qmin, qmax)


_NAMED: dict[str, Callable[[], Observer]] = {
    "minmax": MinMaxObserver,
    "moving_average": MovingAverageObserver,
    "histogram": lambda: HistogramObserver(histogram_bounds),
    "mse": lambda: HistogramObserver(mse_bounds),
    "entropy": lambda: HistogramObserver(entropy_bounds),
}
