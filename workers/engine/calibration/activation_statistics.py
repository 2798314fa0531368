"""What layers read: the range, the percentiles and the outlier channels of every float input, batch by batch.

Extremes are exact. Moments, percentiles and the histogram come from an even subsample of each batch, at most
``SUBSAMPLE`` values: over a thousand batches as over one, they cost less than the layer itself.
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
from fewbit.contract.report import Histogram as ReportHistogram
from workers.engine.graph.layers import Layer
from workers.engine.quantization.observers import Histogram, QParams

Floats = NDArray[np.float64]

SUBSAMPLE = 2**14  # values of one batch; longer loops go to several threads, which wait on a busy machine
PERCENTILES = (0.1, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.9)
SHOWN_BINS = 64
OUTLIER_RATIO = 10.0  # times the median channel's largest magnitude
MOST_OUTLIERS = 16  # channels listed
ROWS = 128  # of the first batch, kept to try remedies on
LEAST_CHANNELS = 8  # the median of fewer says nothing


@dataclass
class InputStatistics:
    """Statistics of one value of the graph. ``axis``: of its channels. ``channel_maxima``: the largest magnitude of
    each channel. ``rows``: float32 [at most ``ROWS``, channels] of the first batch, where channels are the last
    axis."""

    axis: int
    low: float = math.inf
    high: float = -math.inf
    histogram: Histogram = field(default_factory=Histogram)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    channel_maxima: Tensor | None = None
    rows: Tensor | None = None

    def observe(self, x: Tensor) -> None:
        """Add a floating-point tensor; NaN and infinity count as 0."""
        x = x.detach()
        if not x.numel():
            return
        low, high = _extremes(x)
        if not (math.isfinite(low) and math.isfinite(high)):
            x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
            low, high = _extremes(x)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._update_channels(x)
        if self.rows is None and x.dim() >= 2 and self.axis % x.dim() == x.dim() - 1:
            flat = x.reshape(-1, x.shape[-1])
            self.rows = flat[torch.linspace(0, len(flat) - 1, min(len(flat), ROWS)).long()].to(torch.float32)
        values = subsample(x)
        self.histogram.add(values, *_extremes(values))
        wide = values.double()
        self.sums = [a + b for a, b in zip(self.sums, (len(wide), float(wide.sum()), float(wide @ wide)), strict=True)]

    def _update_channels(self, x: Tensor) -> None:
        if x.dim() < 2:
            return
        others = [axis for axis in range(x.dim()) if axis != self.axis % x.dim()]
        largest = torch.maximum(x.amax(others), x.amin(others).neg()).to(torch.float32)
        known = self.channel_maxima
        same_shape = known is not None and known.shape == largest.shape
        self.channel_maxima = torch.maximum(known, largest) if known is not None and same_shape else largest

    @property
    def has_data(self) -> bool:
        return self.sums[0] > 0

    @property
    def outlier_channels(self) -> tuple[OutlierChannel, ...]:
        """Those more than ``OUTLIER_RATIO`` times the median one, the largest first."""
        maxima = self.channel_maxima
        if maxima is None or len(maxima) < LEAST_CHANNELS:
            return ()
        used = maxima[maxima > 0]
        if not len(used):
            return ()
        ratios = maxima / used.median()
        order = ratios.argsort(descending=True)[:MOST_OUTLIERS]
        return tuple(
            OutlierChannel(channel=int(channel), max_abs=float(maxima[channel]), ratio=round(float(ratios[channel]), 2))
            for channel in order
            if ratios[channel] > OUTLIER_RATIO
        )

    def saturated_ratio(self, q: QParams) -> float:
        """The share of values beyond what these integers hold."""
        low, high = ((edge - q.zero_point) * q.scale for edge in (q.qmin - 0.5, q.qmax + 0.5))
        edges, counts = _filled_bins(self.histogram)
        outside = counts[(edges[1:] <= low) | (edges[:-1] >= high)].sum()
        return float(outside / max(counts.sum(), 1.0))

    def stats(self, qparams: QParams | None, calibrated: InputStatistics | None) -> ActivationStats:
        count, total, square = self.sums
        mean = total / count
        return ActivationStats(
            min=self.low,
            max=self.high,
            mean=mean,
            std=math.sqrt(max(square / count - mean * mean, 0.0)),
            percentiles=_percentiles(self),
            outlier_channels=self.outlier_channels,
            saturated_ratio=self.saturated_ratio(qparams) if qparams is not None else None,
            drift=drift(calibrated, self) if calibrated is not None and calibrated.has_data else None,
            histogram=_report_histogram(self),
        )


def input_statistics(layers: Iterable[Layer]) -> dict[fx.Node, InputStatistics]:
    """Empty statistics for each float value that a layer reads; layers that share an input share them."""
    statistics: dict[fx.Node, InputStatistics] = {}
    for layer in layers:
        for use in layer.uses:
            value = use.input.meta.get("val")
            if isinstance(value, Tensor) and value.dtype.is_floating_point and layer.kind not in ("nested", "opaque"):
                statistics.setdefault(use.input, InputStatistics(use.axes[0] if use.axes else -1))
    return statistics


def activation_stats(
    layer: Layer,
    inputs: Mapping[fx.Node, InputStatistics],
    qparams: Mapping[fx.Node, QParams],
    calibrated: Mapping[fx.Node, InputStatistics],
) -> ActivationStats | None:
    """The report's statistics of the layer's first input; None where it reads no float, or no data reached it."""
    node = layer.uses[0].input
    statistics = inputs.get(node)
    if statistics is None or not statistics.has_data:
        return None
    return statistics.stats(qparams.get(node), calibrated.get(node))


def drift(one: InputStatistics, other: InputStatistics) -> float:
    """The largest distance between the two cumulative distributions (Kolmogorov 1933, Smirnov 1948), 0 to 1."""
    (edges, counts), (others, other_counts) = _filled_bins(one.histogram), _filled_bins(other.histogram)
    grid = edges if edges[1] - edges[0] >= others[1] - others[0] else others  # the coarser: no half bins
    distance = np.abs(_cumulative_share(edges, counts, grid) - _cumulative_share(others, other_counts, grid))
    return round(float(distance.max()), 4)


def _extremes(x: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(x)
    return float(low), float(high)


def _cumulative_share(edges: Floats, counts: Floats, grid: Floats) -> Floats:
    below = np.concatenate([[0.0], counts.cumsum()]) / max(counts.sum(), 1.0)
    return np.asarray(np.interp(grid, edges, below, left=0.0, right=1.0), np.float64)


def _filled_bins(histogram: Histogram) -> tuple[Floats, Floats]:
    """The filled bins: edges float64 [n + 1], counts float64 [n]."""
    counts = histogram.counts.numpy().astype(np.float64)
    filled = np.flatnonzero(counts)
    first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, 0)
    edges = np.asarray((np.arange(first, last + 2) + histogram.first) * histogram.width, np.float64)
    return edges, counts[first : last + 1]


def _percentiles(x: InputStatistics) -> dict[str, float]:
    edges, counts = _filled_bins(x.histogram)
    below = np.concatenate([[0.0], counts.cumsum()]) / max(counts.sum(), 1.0)
    return {
        f"{percentile:g}": float(np.clip(np.interp(percentile / 100, below, edges), x.low, x.high))
        for percentile in PERCENTILES
    }


def _report_histogram(x: InputStatistics) -> ReportHistogram:
    edges, counts = _filled_bins(x.histogram)
    if x.low >= x.high:
        return ReportHistogram(edges=(x.low, x.high), counts=(int(counts.sum()),))
    shown = np.linspace(x.low, x.high, SHOWN_BINS + 1)
    below = np.interp(shown, edges, np.concatenate([[0.0], counts.cumsum()]))
    below[0], below[-1] = 0.0, counts.sum()
    return ReportHistogram(edges=tuple(shown.tolist()), counts=tuple(np.diff(np.rint(below)).astype(int).tolist()))


def subsample(x: Tensor) -> Tensor:
    """float32 [at most ``SUBSAMPLE``]: every n-th value, where n shares no factor with the row length."""
    flat = x.reshape(-1)
    stride = max(1, -(-flat.numel() // SUBSAMPLE))
    while stride > 1 and math.gcd(stride, x.shape[-1]) != 1:
        stride += 1
    return flat[::stride].to(torch.float32)
