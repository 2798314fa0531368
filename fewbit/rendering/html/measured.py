"""Coverage, and float compared with int8: size, latency, accuracy."""

from __future__ import annotations

from collections.abc import Iterator

from fewbit.contract.report import Accuracy, Flip, Latency, Metric, Report, Size
from fewbit.rendering.html.charts import bar, diverging, interval
from fewbit.rendering.html.elements import Links, section, table
from fewbit.rendering.html.markup import Child, Markup, tag
from fewbit.rendering.numbers import counted, decibels, kilobytes, milliseconds, percent, points, small
from fewbit.rendering.words import drop_words, metric_change, metric_value

CLASSES_SHOWN = 12
FLIPS_SHOWN = 100


def coverage_section(report: Report, links: Links) -> Markup:
    coverage = report.coverage
    layers = coverage.layers
    shares = {
        "Layers": (layers.quantized / layers.total if layers.total else 0.0, f"{layers.quantized} of {layers.total}"),
        "Parameters": (coverage.parameters, ""),
        "Bytes": (coverage.bytes, ""),
        "Arithmetic": (coverage.macs, ""),
        "Float time": (coverage.time, ""),
    }
    rows = [_bar_row(name, share, note or percent(share)) for name, (share, note) in shares.items()]
    reasons = [tag("li", links.code(code), f" {counted(number, 'layer')}") for code, number in coverage.reasons.items()]
    why = [tag("h3", "Why the rest is float"), tag("ul", *reasons, class_="tags")] if reasons else None
    legend = tag("p", tag("span", "int8", class_="key int8"), tag("span", "float", class_="key rest"), class_="legend")
    return section("coverage", "Coverage", legend, tag("dl", *rows, class_="bars"), why)


def _bar_row(name: str, share: float, note: str, kind: str = "int8") -> Markup:
    return tag("div", tag("dt", name), tag("dd", bar(share, f"{name}: {note}", kind)), tag("dd", note, class_="value"))


def measured_section(report: Report) -> Markup:
    return section(
        "measured",
        "Before and after",
        tag("div", _size(report.size), _latency(report.latency) if report.latency else _no_latency(), class_="halves"),
        _accuracy(report.accuracy) if report.accuracy else _no_accuracy(),
    )


def _size(size: Size) -> Markup:
    rows = [_bar_row("Upload", 1.0, kilobytes(size.before), "rest-strong")]
    if size.after is not None:
        rows.append(_bar_row("Artifact", size.after / size.before if size.before else 0.0, kilobytes(size.after)))
    none = tag("p", "This job made no artifact.", class_="empty") if size.after is None else None
    return tag("div", tag("h3", "Size on disk"), tag("dl", *rows, class_="bars"), none)


def _no_latency() -> Markup:
    return tag("div", tag("h3", "Latency"), tag("p", "Not measured.", class_="empty"))


def _latency(latency: Latency) -> Markup:
    slowest = max([latency.before_ms.p50, *(timing.p50 for timing in latency.artifacts.values())]) or 1.0
    rows = [_bar_row("Float", latency.before_ms.p50 / slowest, milliseconds(latency.before_ms.p50), "rest-strong")]
    for kind, timing in sorted(latency.artifacts.items(), key=lambda item: item[1].p50):
        note = f"{milliseconds(timing.p50)}, {timing.speedup:.2f} ×"
        rows.append(_bar_row(kind, timing.p50 / slowest, note, "loss" if timing.speedup < 1 else "int8"))
    runs = {"float": latency.before_ms, **latency.artifacts}
    rows_of_percentiles = [
        (name, milliseconds(timing.min), milliseconds(timing.p50), milliseconds(timing.p95))
        for name, timing in runs.items()
    ]
    conditions = f"median of one batch of {latency.batch}, {counted(latency.threads, 'thread')}"
    percentiles = tag(
        "details",
        tag("summary", "Percentiles"),
        table("Milliseconds for one batch", ("Run", "#Fastest", "#Median", "#95 %"), rows_of_percentiles),
    )
    return tag("div", tag("h3", "Latency ", tag("small", conditions)), tag("dl", *rows, class_="bars"), percentiles)


def _no_accuracy() -> Markup:
    nothing = "Not measured: the job ran no artifact on data. Give it an evaluation dataset."
    return tag("div", tag("h3", "Accuracy"), tag("p", nothing, class_="empty"))


def _accuracy(accuracy: Accuracy) -> Markup:
    synthetic = (
        "The inputs are synthetic: these numbers show that the artifact agrees with float, not that it is right. "
        "Give the job an evaluation dataset."
    )
    unlabelled = (
        "The data has no labels: outputs are compared with the float model's, and nothing says which are right."
    )
    note = synthetic if accuracy.kind == "synthetic" else (None if accuracy.labelled else unlabelled)
    return tag(
        "div",
        tag("h3", "Accuracy ", tag("small", f"{counted(accuracy.samples, 'sample')} through {accuracy.artifact}")),
        tag("p", note, class_="note") if note else None,
        [_metric(metric, accuracy.samples) for metric in accuracy.metrics],
        _similarity(accuracy),
        tag("div", *_classes(accuracy), *_flips(accuracy), class_="halves"),
    )


def _metric(metric: Metric, samples: int) -> Markup:
    difference = drop_words(metric, samples).replace("\n", ", ")
    drawn = None
    if metric.ci95:
        low, high = metric.ci95
        drawn = interval(
            low, metric.delta, high, f"Difference with its 95 % interval, zero in the middle: {difference}"
        )
    p_value = f", p = {metric.p_value:.2g}" if metric.p_value is not None else ""
    bounds = [metric_change(metric, bound) for bound in metric.ci95 or ()]
    interval_words = f", 95 % between {' and '.join(bounds)}" if bounds else ""
    small_print = (metric.note + p_value + interval_words).strip(", ")
    return tag(
        "div",
        tag(
            "p", tag("b", metric.name), f" {metric_value(metric, metric.before)} → {metric_value(metric, metric.after)}"
        ),
        drawn,
        tag(
            "p",
            difference,
            "." if not difference.endswith(")") else "",
            tag("small", f" {small_print}") if small_print else None,
        ),
        class_="metric",
    )


def _similarity(accuracy: Accuracy) -> Markup:
    output = accuracy.output
    rows: list[tuple[str, str]] = [
        ("SQNR", decibels(output.sqnr_db)),
        ("Cosine", f"{output.cosine:.6f}"),
        ("Largest difference", small(output.max_abs_error)),
    ]
    if output.top1_agreement is not None:
        rows.append(("Same prediction", percent(output.top1_agreement, 2)))
    return tag("dl", *[tag("div", tag("dt", name), tag("dd", value)) for name, value in rows], class_="facts wide")


def _classes(accuracy: Accuracy) -> Iterator[Child]:
    if not accuracy.classes:
        return
    largest = max(abs(row.delta) for row in accuracy.classes)
    rows = [
        (
            row.label, row.samples, percent(row.before), percent(row.after),
            diverging(row.delta, largest, f"{points(row.delta)} points") if row.delta else "", points(row.delta),
        )
        for row in accuracy.classes[:CLASSES_SHOWN]
    ]  # fmt: skip
    shown = f", the {CLASSES_SHOWN} that changed most" if len(accuracy.classes) > CLASSES_SHOWN else ""
    heads = ("Label", "#Samples", "#Float", "#int8", "Change", "#Points")
    yield tag("div", tag("h3", "By class"), table(f"Accuracy by label{shown}", heads, rows))


def _flips(accuracy: Accuracy) -> Iterator[Child]:
    if not accuracy.flips:
        return
    rows = [
        (flip.sample, flip.before, flip.after, "—" if flip.label is None else flip.label, _outcome(flip))
        for flip in accuracy.flips[:FLIPS_SHOWN]
    ]
    number = len(accuracy.flips)
    caption = "Samples whose predicted class changed" + (f", the first {FLIPS_SHOWN}" if number > FLIPS_SHOWN else "")
    drawn = table(caption, ("Sample", "#Float", "#int8", "#Label", "Outcome"), rows, css="tall")
    yield tag("div", tag("h3", counted(number, "flip")), drawn)


def _outcome(flip: Flip) -> str:
    if flip.label is None:
        return ""
    return (
        "now wrong"
        if flip.before == flip.label
        else ("now right" if flip.after == flip.label else "wrong before and after")
    )
