"""Charts over the layers: which ones the output depends on, where error builds up, whether calibration was enough."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from fewbit.contract.report import SQNR_CAP_DB, CalibrationReport, LayerReport, Report
from fewbit.rendering.html.charts import Axis, Line, bar, plot, rounded_axis, spread
from fewbit.rendering.html.elements import qualified_name, section, table
from fewbit.rendering.html.markup import Child, Markup, tag
from fewbit.rendering.numbers import counted, decibels, percent, small_share
from fewbit.rendering.words import by_sensitivity, calibration_words, layer_name, sensitivity

RANKED = 10
METHODS = {"estimate": "Estimated", "brute_force": "Measured, with one evaluation per layer,"}


def sensitivity_section(report: Report) -> Markup:
    ranked = by_sensitivity(report.layers)
    if not ranked:
        nothing = "Not measured. `report.sensitivity` in the job spec turns it on."
        return section("sensitivity", "Sensitivity", tag("p", nothing, class_="empty"))
    how = report.sensitivity
    cost = f" {METHODS[how.method]} from {how.passes:g} passes over {counted(how.samples, 'sample')}." if how else ""
    lead = f"What the model's output loses if only one layer is quantized.{cost}"
    chart = [_pareto(ranked)] if len(ranked) > 1 else []
    return section("sensitivity", "Sensitivity", tag("div", *chart, _ranking(ranked), class_="halves"), lead=lead)


def _pareto(ranked: Sequence[LayerReport]) -> Markup:
    """Bars from the most sensitive layer down, and a line for the share of the sum they add up to."""
    values = [sensitivity(layer) or 0.0 for layer in ranked]
    total = sum(values) or 1.0
    cumulative = [running_sum / total for running_sum in accumulate(values)]
    for_half = next(index for index, share in enumerate(cumulative, 1) if share >= 0.5 or index == len(cumulative))
    sentence = f"{for_half} of {len(values)} layers {'makes' if for_half == 1 else 'make'} up half of the loss."
    label = f"Sensitivity of {len(values)} layers, sorted, with its cumulative share. {sentence}"
    bars = [value / (max(values) or 1.0) * 100 for value in values]
    line = Line("cumulative share", "accent", spread([100 * share for share in cumulative]))
    drawn = plot(label, [line], Axis(0, 100, " %"), ["most sensitive", "least"], bars)
    return tag("figure", drawn, tag("figcaption", sentence, " Bars: share of the largest. Line: cumulative share."))


def _ranking(ranked: Sequence[LayerReport]) -> Markup:
    largest = sensitivity(ranked[0]) or 1.0
    rows: list[Sequence[Child]] = []
    for layer in ranked[:RANKED]:
        value = sensitivity(layer) or 0.0
        gain = layer.error.spared_gain_db if layer.error else None
        drawn = bar(value / largest, f"{small_share(value)}", "accent")
        rows.append(((qualified_name(layer.name), drawn), small_share(value), decibels(gain)))
    return table("The most sensitive layers", ("Layer", "#Loss", "#Gain if left float"), rows)


def depth_section(report: Report) -> Markup:
    own = [_error(layer.error.output_sqnr_db) if layer.error and layer.quantized else None for layer in report.layers]
    accumulated = [_error(layer.error.accumulated_sqnr_db) if layer.error else None for layer in report.layers]
    known = [value for value in (*own, *accumulated) if value is not None]
    if len(known) < 2 or len(report.layers) < 2:
        nothing = "Nothing to draw: fewer than two layers have a measured error."
        return section("depth", "Error along the depth", tag("p", nothing, class_="empty"))
    lines = [
        Line("own output", "int8", spread(own)),
        *(
            [Line("accumulated", "accent dashed", spread(accumulated))]
            if any(value is not None for value in accumulated)
            else []
        ),
    ]
    names = [layer_name(layer.name) for layer in report.layers]
    ends = [names[0], names[-1]] if len(names) > 1 else names
    lead = (
        "Higher is better. Own: the layer alone, on float inputs. Accumulated: with the errors of all layers before it."
    )
    drawn = plot(_depth_label(report.layers, own, accumulated), lines, rounded_axis(known, " dB"), ends)
    return section("depth", "Error along the depth", tag("figure", drawn), lead=lead)


def _error(sqnr_db: float | None) -> float | None:
    """``None`` for identical outputs: their SQNR is the cap, which would flatten the rest of the curve."""
    return None if sqnr_db == SQNR_CAP_DB else sqnr_db


def _depth_label(
    layers: Sequence[LayerReport], own: Sequence[float | None], accumulated: Sequence[float | None]
) -> str:
    """What the lines show, for readers who cannot see them."""
    facts = []
    for name, values in (("own", own), ("accumulated", accumulated)):
        known = [(value, layer.name) for value, layer in zip(values, layers, strict=True) if value is not None]
        if known:
            lowest, where = min(known)
            facts.append(
                f"{name} SQNR lowest at {layer_name(where)} with {decibels(lowest)}, last {decibels(known[-1][0])}"
            )
    return f"SQNR along {len(layers)} layers: {'; '.join(facts)}"


def calibration_section(report: Report) -> Markup | None:
    """``None`` for a job without calibration."""
    if report.calibration is None:
        return None
    sentences = [tag("p", sentence) for sentence in calibration_words(report)]
    chart = _convergence(report.calibration) if len(report.calibration.convergence) > 1 else None
    return section("calibration", "Calibration", tag("div", tag("div", *sentences), chart, class_="halves"))


def _convergence(calibration: CalibrationReport) -> Child:
    """Steps are equally wide and labelled by sample count: a log scale would need more ticks than fit on a phone."""
    steps = calibration.convergence
    line = Line("range reached", "accent", spread([100 * step.range_share for step in steps]))
    label = "Share of the final ranges reached: " + ", ".join(
        f"{percent(step.range_share)} after {step.samples} samples" for step in steps
    )
    lowest = 100 * min(step.range_share for step in steps)
    axis = Axis(next(low for low in (90, 80, 60, 0) if low <= max(lowest, 0)), 100, " %")
    ends = [str(step.samples) for step in steps]
    drawn = plot(label, [line], axis, ends if len(ends) <= 8 else [ends[0], ends[-1]])
    return tag("figure", drawn, tag("figcaption", "Share of the final ranges reached, by number of samples."))
