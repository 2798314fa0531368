"""What layers read: the range, the percentiles and the loud channels of every float input, batch by batch.

Extremes are exact. Moments, percentiles and the histogram come from an even share of each batch, at most ``SHARE``
values: over a thousand batches as over one, they cost less than the layer itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from fewbit.contract.report import ActivationStats, OutlierChannel
from fewbit.contract.report import Histogram as Bars
from workers.engine.graph.layers import Layer
from workers.engine.quantization.observers import Histogram, QParams

Floats = NDArray[np.float64]

SHARE = 2**14  # values of one batch; longer loops go to several threads, which wait on a busy machine
PERCENTILES = (0.1, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.9)
SHOWN_BINS = 64
LOUD = 10.0  # times the median channel's largest magnitude
MOST_LOUD = 16  # channels listed
ROWS = 128  # of the first batch, kept to try remedies on
LEAST_CHANNELS = 8  # the median of fewer says nothing


@dataclass
class InputWatch:
    """Sees one value of the graph. ``axis``: of its channels. ``rows``: float32 [at most ``ROWS``, channels], of the
    first batch, where channels lie on the last axis."""

    axis: int
    low: float = math.inf
    high: float = -math.inf
    histogram: Histogram = field(default_factory=Histogram)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    loudest: Tensor | None = None
    rows: Tensor | None = None

    def observe(self, x: Tensor) -> None:
        """Takes in a floating-point tensor; NaN and infinity are left out."""
        x = x.detach()
        if not x.numel():
            return
        low, high = (float(each) for each in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
            low, high = (float(each) for each in torch.aminmax(x))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._channels(x)
        if self.rows is None and x.dim() >= 2 and self.axis % x.dim() == x.dim() - 1:
            flat = x.reshape(-1, x.shape[-1])
            self.rows = flat[torch.linspace(0, len(flat) - 1, min(len(flat), ROWS)).long()].to(torch.float32)
        some = share_of(x)
        self.histogram.add(some, *(float(each) for each in torch.aminmax(some)))
        wide = some.double()
        self.sums = [a + b for a, b in zip(self.sums, (len(wide), float(wide.sum()), float(wide @ wide)), strict=True)]

    def _channels(self, x: Tensor) -> None:
        if x.dim() < 2:
            return
        others = [axis for axis in range(x.dim()) if axis != self.axis % x.dim()]
        largest = torch.maximum(x.amax(others), x.amin(others).neg()).to(torch.float32)
        known = self.loudest if self.loudest is not None and self.loudest.shape == largest.shape else largest
        self.loudest = torch.maximum(known, largest)

    @property
    def seen(self) -> bool:
        return self.sums[0] > 0

    @property
    def loud_channels(self) -> tuple[OutlierChannel, ...]:
        """Those more than ``LOUD`` times the median one, the loudest first."""
        if self.loudest is None or len(self.loudest) < LEAST_CHANNELS:
            return ()
        used = self.loudest[self.loudest > 0]
        if not len(used):
            return ()
        ratios = self.loudest / used.median()
        order = ratios.argsort(descending=True)[:MOST_LOUD]
        return tuple(
            OutlierChannel(channel=int(each), max_abs=float(self.loudest[each]), ratio=round(float(ratios[each]), 2))
            for each in order
            if ratios[each] > LOUD
        )

    def saturated(self, q: QParams) -> float:
        """The share of values beyond what these integers hold."""
        low, high = ((edge - q.zero_point) * q.scale for edge in (q.qmin - 0.5, q.qmax + 0.5))
        edges, counts = _edges(self.histogram)
        outside = counts[(edges[1:] <= low) | (edges[:-1] >= high)].sum()
        return float(outside / max(counts.sum(), 1.0))

    def stats(self, qparams: QParams | None, calibrated: InputWatch | None) -> ActivationStats:
        count, total, square = self.sums
        mean = total / count
        return ActivationStats(
            min=self.low,
            max=self.high,
            mean=mean,
            std=math.sqrt(max(square / count - mean * mean, 0.0)),
            percentiles=_percentiles(self),
            outlier_channels=self.loud_channels,
            saturated_ratio=self.saturated(qparams) if qparams is not None else None,
            drift=drift(calibrated, self) if calibrated is not None and calibrated.seen else None,
            histogram=_bars(self),
        )


def watches_of(layers: Iterable[Layer]) -> dict[fx.Node, InputWatch]:
    """One for each float value that a layer reads; layers that share an input share its watch."""
    watches: dict[fx.Node, InputWatch] = {}
    for layer in layers:
        for use in layer.uses:
            value = use.input.meta.get("val")
            if isinstance(value, Tensor) and value.dtype.is_floating_point and layer.kind not in ("nested", "opaque"):
                watches.setdefault(use.input, InputWatch(use.axes[0] if use.axes else -1))
    return watches


def stats_of(
    layer: Layer,
    watches: Mapping[fx.Node, InputWatch],
    qparams: Mapping[fx.Node, QParams],
    calibrated: Mapping[fx.Node, InputWatch],
) -> ActivationStats | None:
    """Of the layer's first input; None where it reads no float, or no data reached it."""
    node = layer.uses[0].input
    watch = watches.get(node)
    if watch is None or not watch.seen:
        return None
    return watch.stats(qparams.get(node), calibrated.get(node))


def drift(one: InputWatch, other: InputWatch) -> float:
    """The largest distance between the two cumulative distributions (Kolmogorov 1933, Smirnov 1948), 0 to 1."""
    (edges, counts), (others, other_counts) = _edges(one.histogram), _edges(other.histogram)
    grid = edges if edges[1] - edges[0] >= others[1] - others[0] else others  # the coarser: no half bins
    distance = np.abs(_cumulated(edges, counts, grid) - _cumulated(others, other_counts, grid))
    return round(float(distance.max()), 4)


def _cumulated(edges: Floats, counts: Floats, grid: Floats) -> Floats:
    below = np.concatenate([[0.0], counts.cumsum()]) / max(counts.sum(), 1.0)
    return np.asarray(np.interp(grid, edges, below, left=0.0, right=1.0), np.float64)


def _edges(histogram: Histogram) -> tuple[Floats, Floats]:
    """The filled bins: edges float64 [n + 1], counts float64 [n]."""
    counts = histogram.counts.numpy().astype(np.float64)
    filled = np.flatnonzero(counts)
    first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, 0)
    edges = np.asarray((np.arange(first, last + 2) + histogram.first) * histogram.width, np.float64)
    return edges, counts[first : last + 1]


def _percentiles(watch: InputWatch) -> dict[str, float]:
    edges, counts = _edges(watch.histogram)
    below = np.concatenate([[0.0], counts.cumsum()]) / max(counts.sum(), 1.0)
    return {
        f"{each:g}": float(np.clip(np.interp(each / 100, below, edges), watch.low, watch.high)) for each in PERCENTILES
    }


def _bars(watch: InputWatch) -> Bars:
    edges, counts = _edges(watch.histogram)
    if watch.low >= watch.high:
        return Bars(edges=(watch.low, watch.high), counts=(int(counts.sum()),))
    shown = np.linspace(watch.low, watch.high, SHOWN_BINS + 1)
    below = np.interp(shown, edges, np.concatenate([[0.0], counts.cumsum()]))
    below[0], below[-1] = 0.0, counts.sum()
    return Bars(edges=tuple(shown.tolist()), counts=tuple(np.diff(np.rint(below)).astype(int).tolist()))


def share_of(x: Tensor) -> Tensor:
    """float32 [at most ``SHARE``]: every so many-th value, by a stride that shares no factor with the row length."""
    flat = x.reshape(-1)
    stride = max(1, -(-flat.numel() // SHARE))
    while stride > 1 and math.gcd(stride, x.shape[-1]) != 1:
        stride += 1
    return flat[::stride].to(torch.float32)
