"""Charts as inline SVG. Shapes stretch with the page; words are HTML beside them, so that they keep their size on a
phone. There are no style attributes, because the page's policy forbids them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fewbit.contract.report import Histogram
from fewbit.rendering.html.markup import Markup, tag
from fewbit.rendering.numbers import small

WIDTH, HEIGHT = 1000, 200
BINS = 64  # more would be narrower than a pixel in a layer's detail
DOTS = 60  # with more points than this, only the line is drawn
TICKS = 4

Points = Sequence[tuple[float, float | None]]


def _svg(label: str, *shapes: Markup, css: str, height: int = HEIGHT) -> Markup:
    return tag(
        "svg", *shapes, class_=css, viewBox=f"0 0 {WIDTH} {height}", preserveAspectRatio="none", role="img",
        aria_label=label,
    )  # fmt: skip


# Bars


def bar(share: float, label: str, kind: str = "int8") -> Markup:
    """A share of 1, as a bar."""
    filled = tag("rect", class_=kind, width=f"{WIDTH * min(max(share, 0.0), 1.0):.0f}", height=10)
    return _svg(label, tag("rect", class_="rest", width=WIDTH, height=10), filled, css="bar", height=10)


def diverging(value: float, largest: float, label: str) -> Markup:
    """A bar that starts in the middle, to the left for a loss."""
    length = WIDTH / 2 * min(abs(value) / largest, 1.0) if largest else 0.0
    start = WIDTH / 2 - (length if value < 0 else 0)
    shape = tag(
        "rect", class_="loss" if value < 0 else "int8", x=f"{start:.0f}", width=f"{max(length, 4):.0f}", height=10
    )
    middle = tag("rect", class_="axis", x=WIDTH // 2 - 1, width=2, height=10)
    return _svg(label, tag("rect", class_="rest", width=WIDTH, height=10), shape, middle, css="bar", height=10)


def interval(low: float, value: float, high: float, label: str) -> Markup:
    """A measured difference and its confidence interval, with zero in the middle of the scale."""
    reach = max(abs(low), abs(high), abs(value), 1e-9) * 1.25

    def x(number: float) -> float:
        return WIDTH / 2 * (1 + number / reach)

    crosses = low <= 0 <= high
    zero = tag("path", class_="axis", d=f"M{WIDTH // 2} 0V40")
    whisker = tag(
        "path", class_="whisker" if crosses else "whisker sure",
        d=f"M{x(low):.0f} 12V28M{x(high):.0f} 12V28M{x(low):.0f} 20H{x(high):.0f}",
    )  # fmt: skip
    dot = tag("path", class_="dot" if crosses else "dot sure", d=f"M{x(value):.0f} 20h0")
    return _svg(label, zero, whisker, dot, css="interval", height=40)


# Histograms


def histogram(values: Histogram, label: str, kind: str = "int8") -> Markup:
    """Heights are logarithmic in the count, so that a single outlier can be seen beside a million values."""
    edges, counts = _coarser(values)
    if not counts or max(counts) <= 0 or edges[-1] <= edges[0]:
        return tag("p", "No values to draw.", class_="empty")
    tallest = math.log1p(max(counts))
    scale = WIDTH / (edges[-1] - edges[0])
    path = "M0 100"
    for index, number in enumerate(counts):
        top = 100 - round(96 * math.log1p(number) / tallest)
        path += f"V{top}H{round((edges[index + 1] - edges[0]) * scale)}"
    shape = tag("path", class_=kind, d=f"{path}V100z")
    ends = [tag("span", small(edge)) for edge in (edges[0], (edges[0] + edges[-1]) / 2, edges[-1])]
    return tag("div", _svg(label, shape, css="histogram", height=100), tag("div", *ends, class_="ends"))


def _coarser(values: Histogram) -> tuple[Sequence[float], Sequence[int]]:
    """The histogram with at most ``BINS`` bins: neighbours are added up."""
    step = max(1, -(-len(values.counts) // BINS))
    counts = [sum(values.counts[start : start + step]) for start in range(0, len(values.counts), step)]
    edges = [*values.edges[:-1:step], values.edges[-1]] if values.edges else []
    return edges, counts


# Lines


@dataclass(frozen=True)
class Line:
    """One line of a plot. A ``None`` in ``points`` breaks it; ``css`` sets its colour and dash."""

    name: str
    css: str
    points: Points


@dataclass(frozen=True)
class Axis:
    """A scale from ``low`` to ``high`` in equal steps; ticks are labelled in ``unit``."""

    low: float
    high: float
    unit: str = ""

    @property
    def ticks(self) -> list[str]:
        """The labels, from the top down."""
        step = (self.high - self.low) / TICKS
        return [f"{small(self.high - step * index)}{self.unit}" for index in range(TICKS + 1)]

    def place(self, value: float) -> float:
        return HEIGHT * (1 - (value - self.low) / (self.high - self.low))


def rounded_axis(values: Iterable[float], unit: str, at_zero: bool = False) -> Axis:
    """The axis with round ticks that covers all of the values."""
    known = list(values)
    low, high = min(known), max(known)
    low = 0.0 if at_zero else low
    step = _round_step((high - low) / TICKS or max(abs(high), 1.0) / TICKS)
    start = math.floor(low / step) * step
    while start + TICKS * step < high:
        step = _round_step(step * 1.01)
        start = math.floor(low / step) * step
    return Axis(start, start + TICKS * step, unit)


def _round_step(step: float) -> float:
    """The next larger of 1, 2, 2.5, 5 and 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= step * (1 - 1e-9))


def plot(label: str, lines: Sequence[Line], axis: Axis, ends: Sequence[str], bars: Sequence[float] = ()) -> Markup:
    """Lines over one axis. ``ends`` are labels under it, spread evenly; ``bars`` are drawn behind the lines."""
    grid = "".join(f"M0 {HEIGHT * index // TICKS}H{WIDTH}" for index in range(TICKS + 1))
    shapes = [tag("path", class_="grid", d=grid)]
    if bars:
        shapes.append(tag("path", class_="bars", d=_columns(bars, axis)))
    shapes += [tag("path", class_=f"line {line.css}", d=_path(line.points, axis)) for line in lines]
    legend = [tag("span", line.name, class_=f"key {line.css}") for line in lines]
    return tag(
        "div",
        tag("div", *legend, class_="legend") if len(lines) > 1 else None,
        tag("div", *[tag("span", tick) for tick in axis.ticks], class_="ticks", aria_hidden="true"),
        _svg(label, *shapes, css="lines"),
        tag("div", *[tag("span", end) for end in ends], class_="ends"),
        class_="plot",
    )


def _path(points: Points, axis: Axis) -> str:
    """Straight lines between known points. Up to ``DOTS`` points are also drawn as dots."""
    path, pen_down = "", False
    for x, y in points:
        if y is None:
            pen_down = False
            continue
        place = f"{x * WIDTH:.0f} {axis.place(y):.0f}"
        path += f"{'L' if pen_down else 'M'}{place}"
        pen_down = True
    if len(points) <= DOTS:
        path += "".join(f"M{x * WIDTH:.0f} {axis.place(y):.0f}h0" for x, y in points if y is not None)
    return path


def _columns(values: Sequence[float], axis: Axis) -> str:
    width = WIDTH / len(values)
    gap = width * 0.15 if len(values) <= DOTS else 0
    return "".join(
        f"M{index * width + gap:.1f} {HEIGHT}V{axis.place(value):.1f}H{(index + 1) * width - gap:.1f}V{HEIGHT}z"
        for index, value in enumerate(values)
    )


def spread(values: Sequence[float | None]) -> Points:
    """The values as points at equal distances over the width."""
    return [((index + 0.5) / len(values), value) for index, value in enumerate(values)]
