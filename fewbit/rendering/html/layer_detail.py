"""The detail of one layer: why it is int8 or float, its weights, its inputs, its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fewbit.contract.report import ActivationStats, Finding, LayerReport, TargetSaturation, WeightStats
from fewbit.contract.resources import Reason
from fewbit.rendering.html.charts import histogram
from fewbit.rendering.html.elements import Links, fact_list, patch_block, table, with_code
from fewbit.rendering.html.markup import Child, Markup, tag
from fewbit.rendering.html.summary import evidence_words, finding_block
from fewbit.rendering.numbers import count, decibels, minus, percent, shape, small, small_share
from fewbit.rendering.words import layer_name, requested_words, scheme_words

TARGETS = {"avx2": "AVX2", "avx512": "AVX-512", "vnni": "VNNI", "arm": "ARM"}
CHANNELS_SHOWN = 6


def detail(layer: LayerReport, found: Sequence[Finding], links: Links) -> Markup:
    return tag(
        "div",
        tag("div", _why(layer, found, links), class_="why"),
        _weights(layer.weights, layer.name) if layer.weights else None,
        _activations(layer.activations, layer.name) if layer.activations else None,
        _saturation(layer.saturation, layer.name) if layer.saturation else None,
        class_="parts",
    )


def _why(layer: LayerReport, found: Sequence[Finding], links: Links) -> list[Child]:
    return [
        _reason(layer.reason, "Why", links) if layer.reason else None,
        [finding_block(finding, links, with_layer=False) for finding in found],
        _state(layer),
        _reason(layer.eager.reason, "With plain quantize_dynamic", links) if layer.eager.reason else None,
    ]


def _reason(reason: Reason, title: str, links: Links) -> Child:
    return [
        tag("h3", title, " ", links.code(reason.code)),
        tag("p", with_code(reason.message)),
        fact_list({name: evidence_words(value) for name, value in reason.evidence.items()}),
        tag("p", with_code(reason.remedy), class_="remedy") if reason.remedy else None,
        patch_block(reason.patch, reason.code) if reason.patch is not None else None,
    ]


def _state(layer: LayerReport) -> Child:
    asked, run, error = layer.requested, layer.execution, layer.error
    rule = f", by {asked.rule}" if asked and asked.rule else ""
    ran = f"{run.kernel}: {run.ms:.3g} ms, {percent(run.share)} of all layers, in {run.artifact}" if run else None
    rows: dict[str, Child] = {
        "Type": layer.type,
        "Operator": layer.op,
        "Weight": shape(layer.shape),
        "Work": f"{count(layer.macs)} MACs a sample, {count(layer.parameters)} parameters, {layer.calls} "
        + ("use" if layer.calls == 1 else "uses"),
        "Requested": f"{requested_words(asked)}{rule}" if asked else None,
        "Converted": scheme_words(layer.scheme) if layer.scheme else "float",
        "Executed": ran or layer.executed or "not run",
    }
    if error:
        rows |= {
            "Own SQNR": decibels(error.output_sqnr_db) if error.output_sqnr_db is not None else None,
            "Accumulated": decibels(error.accumulated_sqnr_db) if error.accumulated_sqnr_db is not None else None,
            "Sensitivity": small_share(error.sensitivity) if error.sensitivity is not None else None,
            "Gain if left float": minus(f"{error.spared_gain_db:+.1f} dB")
            if error.spared_gain_db is not None
            else None,
        }
    return [tag("h3", "This layer"), fact_list(rows)]


def _weights(stats: WeightStats, name: str) -> Markup:
    by_granularity = {f"SQNR {kind.replace('_', ' ')}": decibels(value) for kind, value in stats.sqnr_db.items()}
    gain = stats.mse_range_gain_db
    return tag(
        "div",
        tag("h3", "Weights"),
        histogram(stats.histogram, f"Histogram of the weights of {layer_name(name)}, counts on a log scale"),
        fact_list(
            _moments(stats)
            | {
                "Kurtosis": small(stats.kurtosis),
                "Outliers beyond 6 σ": small_share(stats.outlier_ratio),
                "Rounded to zero": small_share(stats.zeroed_ratio),
                "Clipped": small_share(stats.saturated_ratio),
            }
            | by_granularity
            | {"Gain with the mse range": decibels(gain) if gain is not None else None}
        ),
    )


def _activations(stats: ActivationStats, name: str) -> Markup:
    percentiles = {f"{percentile} % below": small(value) for percentile, value in stats.percentiles.items()}
    channels = [
        f"{channel.channel}: up to {small(channel.max_abs)}, {channel.ratio:.3g} × the median channel"
        for channel in stats.outlier_channels[:CHANNELS_SHOWN]
    ]
    more = len(stats.outlier_channels) - CHANNELS_SHOWN
    listed = [tag("div", line) for line in channels + ([f"and {more} more"] if more > 0 else [])]
    return tag(
        "div",
        tag("h3", "Activations"),
        histogram(stats.histogram, f"Histogram of the inputs of {layer_name(name)}, counts on a log scale", "accent"),
        fact_list(
            _moments(stats)
            | percentiles
            | {
                "Clipped": small_share(stats.saturated_ratio) if stats.saturated_ratio is not None else None,
                "Drift from calibration": small(stats.drift) if stats.drift is not None else None,
                "Outlier channels": listed or "none",
            }
        ),
    )


def _moments(stats: WeightStats | ActivationStats) -> dict[str, Child]:
    return {
        "Range": f"{small(stats.min)} to {small(stats.max)}",
        "Mean ± σ": f"{small(stats.mean)} ± {small(stats.std)}",
    }


def _saturation(targets: Mapping[str, TargetSaturation], name: str) -> Markup:
    rows = [
        (TARGETS.get(target, target), small_share(value.saturated_ratio), decibels(value.output_sqnr_db))
        for target, value in targets.items()
    ]
    caption = "Integer sums on other CPUs"
    return tag(
        "div",
        tag("h3", "On other CPUs"),
        table(f"{caption} of {layer_name(name)}", ("CPU", "#Pairs clamped", "#SQNR there"), rows, css="hidden-caption"),
    )
