"""Defects of weights, activations and calibration data that cost accuracy, by layer, each with the change to the job
that avoids it.

A large number alone is not a defect. An outlier weight is one if it takes the levels from all other values of its row;
an outlier channel is one if moving its scale into the weights would bring the layer's output 3 dB closer to float.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewbit.contract.report import CalibrationReport, Finding, LayerReport, OutlierChannel
from fewbit.contract.spec import JobSpec
from workers.engine.calibration.conversion import Conversion
from workers.engine.calibration.smooth import possible_gain_db
from workers.engine.graph.layers import Layer
from workers.engine.measurement.float_pass import Observation
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.repair import non_finite
from workers.engine.reporting.patches import add_rules, exact_pattern, leave_float

LOST = 0.5  # of a row's weights rounded to zero
LEAST_ROW = 16  # shorter rows (depthwise filters) have too few other values to lose
OUTLIER = 100.0  # times the row's median magnitude
TORCH_FLOOR = torch.finfo(torch.float32).eps  # the smallest scale of torch.ao's and torchao's observers
OUTLIER_CHANNEL = 20.0  # times the median channel's largest magnitude
LEAST_GAIN_DB = 3.0
LEAST_OWN_DB = 25.0  # an outlier channel that cannot be smoothed is a defect below this
FEW_SAMPLES = 8
LEAST_SETTLED = 0.9  # of the final range after half the samples
DRIFTED, CLIPPED = 0.25, 0.01
DUPLICATED = 0.5


@dataclass(frozen=True)
class Case:
    """All that the rules look at."""

    spec: JobSpec
    conversion: Conversion
    observation: Observation
    rows: Sequence[LayerReport]


def find_defects(case: Case) -> tuple[Finding, ...]:
    return (
        *_non_finite_constants(case),
        *filter(None, (_weight_defect(case, quantized) for quantized in case.conversion.quantized)),
        *_outlier_channels(case),
        *_uncalibrated_layers(case),
        *_tied_weights(case),
        *_calibration_drift(case),
        *_calibration_data(case.conversion.calibration.report, case.spec),
    )


# --- Weights ----------------------------------------------------------------------------------------------------------


def _weight_defect(case: Case, quantized: QuantizedLayer) -> Finding | None:
    layer, stats = quantized.layer, quantized.stats
    largest = max(float(operand.value.detach().abs().amax()) for operand in layer.operands if operand.value.numel())
    if 0 < largest <= TORCH_FLOOR * 127.5:
        return _tiny_weights(case, layer.name, largest)
    lost = _rows_lost_to_outliers(layer.weight.detach(), quantized, layer.operands[0].reduce)
    if lost is not None:
        return _outlier_in_row(case, layer.name, lost)
    if quantized.weights[0].granularity == "per_tensor" and stats is not None and stats.zeroed_ratio > LOST:
        return _outlier_in_tensor(case, layer.name, stats.zeroed_ratio)
    return None


def _tiny_weights(case: Case, name: str, largest: float) -> Finding:
    return Finding(
        severity="warning",
        code="numeric",
        layer=name,
        message=f"The largest weight is {largest:.3g}. Stock quantizers never use a scale below {TORCH_FLOOR:.3g}, and "
        "round this whole layer to zeros. Here it keeps its levels, but weights this small may have no effect in the "
        "model.",
        evidence={"max_abs": largest, "floor": TORCH_FLOOR},
        remedy="Rescale the layer before exporting, or leave it float.",
        patch=leave_float(case.spec, name),
    )


def _outlier_in_tensor(case: Case, name: str, zeroed_ratio: float) -> Finding:
    return Finding(
        severity="warning",
        code="outlier",
        layer=name,
        message=f"{zeroed_ratio:.0%} of the weights round to zero: the largest ones set the scale of all rows.",
        evidence={"zeroed_ratio": round(zeroed_ratio, 4)},
        remedy="Quantize this layer per channel.",
        patch=add_rules(case.spec, {"match": exact_pattern(name), "weights": {"granularity": "per_channel"}}),
    )


def _outlier_in_row(case: Case, name: str, lost: _LostRows) -> Finding:
    """Smaller groups would save the other weights, but still round the one that matters: float was closer in every
    model tried (36.8 dB against 36.6 with groups of 8, and 36.6 without)."""
    return Finding(
        severity="warning",
        code="outlier",
        layer=name,
        message=f"In row {lost.worst} of the weight one value is {lost.ratio:.0f} times the median and sets the scale: "
        f"{lost.zeroed:.0%} of the others round to zero. Rows of this layer that lose more than half: {lost.rows}.",
        evidence={"rows": lost.rows, "row": lost.worst, "ratio": round(lost.ratio, 1), "zeroed_ratio": lost.zeroed},
        remedy="Leave this layer float, or retrain it without the outlier.",
        patch=leave_float(case.spec, name),
    )


@dataclass(frozen=True)
class _LostRows:
    """``rows``: how many; of the ``worst``: its outlier's ratio to the median, and the share of zeroed weights."""

    rows: int
    worst: int
    ratio: float
    zeroed: float


def _rows_lost_to_outliers(weight: Tensor, quantized: QuantizedLayer, reduce: tuple[int, ...]) -> _LostRows | None:
    """Rows whose levels one weight takes; ``worst`` is the one with the largest ratio."""
    first = quantized.weights[0]
    kept = [axis for axis in range(weight.dim()) if axis not in reduce]
    shape = (-1, weight.numel() // max(1, math.prod(weight.shape[axis] for axis in kept)))
    if shape[1] < LEAST_ROW:
        return None
    order = (*kept, *sorted(reduce))
    integers = first.values.permute(order).reshape(shape)
    zeros = (integers == 0).sum(1)
    suspect = (zeros.double() > LOST * shape[1]).nonzero().flatten()
    if not len(suspect):
        return None
    rows = weight.permute(order).reshape(shape)[suspect].abs().float()
    alive = (rows > 0).sum(1)
    zeroed = (zeros[suspect] - (shape[1] - alive)) / alive.clamp_min(1)
    typical = torch.where(rows > 0, rows, torch.nan).nanmedian(1).values
    ratios = torch.nan_to_num(rows.amax(1) / typical)
    lost = (zeroed > LOST) & (ratios > OUTLIER) & (alive >= LEAST_ROW)
    if not bool(lost.any()):
        return None
    worst = int(torch.where(lost, ratios, 0.0).argmax())
    return _LostRows(int(lost.sum()), int(suspect[worst]), float(ratios[worst]), round(float(zeroed[worst]), 4))


def _non_finite_constants(case: Case) -> Iterator[Finding]:
    owners = {source.name: layer.name for layer in case.conversion.layers for source in layer.sources}
    for name, count in non_finite(case.conversion.program).items():
        layer = owners.get(name)
        repair = {"match": exact_pattern(layer), "weights": {"non_finite": "repair"}} if layer else None
        yield Finding(
            severity="error",
            code="nan-inf",
            layer=layer or name,
            message=f"{name} has NaN or infinity in {_values(count)}. What the model computes from it is lost; layers "
            "behind it were measured as if it were repaired.",
            evidence={"tensor": name, "non_finite": count},
            remedy="Find where training produced it, and export again"
            + ("; or have it repaired: NaN becomes 0, infinity the largest finite magnitude." if layer else "."),
            patch=add_rules(case.spec, repair) if repair else None,
        )


def _values(count: int) -> str:
    return "1 value" if count == 1 else f"{count} values"


def _tied_weights(case: Case) -> Iterator[Finding]:
    """Layers that share one weight: it is stored once, but its error counts in each place."""
    groups: dict[tuple[int, int], list[str]] = {}
    for quantized in case.conversion.quantized:
        weight = quantized.layer.weight
        groups.setdefault((weight.data_ptr(), weight.numel()), []).append(quantized.layer.name)
    for names in groups.values():
        if len(names) > 1:
            yield Finding(
                severity="info",
                code="tied",
                layer=names[-1],
                message=f"{' and '.join(names)} share one weight. The pt2 artifact keeps one integer copy, a "
                "TorchScript artifact packs one for each layer; quantize_dynamic would keep the float weight too.",
                evidence={"layers": names},
                remedy="Nothing has to be done. Leaving it float removes its rounding error from all of them.",
                patch=leave_float(case.spec, *names),
            )


# --- Activations ------------------------------------------------------------------------------------------------------


def _outlier_channels(case: Case) -> Iterator[Finding]:
    suspects = {row.name: row for row in case.rows if _has_outlier_channel(row)}
    if not suspects:
        return
    gains = possible_gain_db(case.conversion, suspects, case.observation.inputs)
    for name, row in suspects.items():
        own = row.error.output_sqnr_db if row.error else None
        gain = gains.get(name)
        costs_little = gain < LEAST_GAIN_DB if gain is not None else own is None or own >= LEAST_OWN_DB
        if not costs_little and row.activations is not None:
            yield _outlier_channel(case, name, row.activations.outlier_channels[0], gain)


def _has_outlier_channel(row: LayerReport) -> bool:
    channels = row.activations.outlier_channels if row.activations else ()
    quantizes_activations = row.quantized and row.scheme is not None and row.scheme.activations is not None
    return quantizes_activations and bool(channels) and channels[0].ratio >= OUTLIER_CHANNEL


def _outlier_channel(case: Case, name: str, channel: OutlierChannel, gain: float | None) -> Finding:
    smoothable = gain is not None and case.spec.smooth is None
    advice = "moved into the weights it would cost nothing" if smoothable else "it cannot be moved into the weights"
    return Finding(
        severity="warning",
        code="activation-outlier",
        layer=name,
        message=f"Input channel {channel.channel} is {channel.ratio:.0f} times as large as the median channel and "
        f"takes the levels of all others: {advice}.",
        evidence={"channel": channel.channel, "ratio": channel.ratio, "max_abs": channel.max_abs, "gain_db": gain},
        remedy="Smooth the job: SmoothQuant moves the channel's scale into the weights."
        if smoothable
        else "Leave this layer float.",
        patch={"smooth": {"alpha": "auto"}} if smoothable else leave_float(case.spec, name),
    )


def _uncalibrated_layers(case: Case) -> Iterator[Finding]:
    layers = {quantized.layer.name: quantized.layer for quantized in case.conversion.quantized}
    for name in case.conversion.calibration.unreached:
        if name in layers:
            yield _uncalibrated_layer(case, name, _is_reached_in_evaluation(case, layers[name]))


def _uncalibrated_layer(case: Case, name: str, in_evaluation: bool) -> Finding:
    return Finding(
        severity="warning",
        code="not-calibrated",
        layer=name,
        message="No calibration sample reached this layer: its branch was never taken, or got no rows. Only its "
        "weights are integers, and ranges behind it were fixed without it.",
        evidence={"reached_in_evaluation": in_evaluation},
        remedy="Calibrate on the evaluation data, or better, on more data that takes this branch."
        if in_evaluation
        else "Add calibration samples that take this branch; until then, leave the layer float.",
        patch=_calibrate_on_evaluation(case) if in_evaluation else leave_float(case.spec, name),
    )


def _is_reached_in_evaluation(case: Case, layer: Layer) -> bool:
    if layer.kind == "nested":
        return layer.name not in case.observation.branches.never_run
    statistics = case.observation.inputs.get(layer.uses[0].input)
    return statistics is not None and statistics.has_data


def _calibration_drift(case: Case) -> Iterator[Finding]:
    """Of the first layer only: the others read what follows from it."""
    for row in case.rows:
        drift = row.activations.drift if row.activations else None
        saturated_ratio = row.activations.saturated_ratio if row.activations else None
        if drift is None or saturated_ratio is None or drift <= DRIFTED or saturated_ratio <= CLIPPED:
            continue
        yield Finding(
            severity="warning",
            code="calibration-drift",
            layer=row.name,
            message="This layer reads other values in the evaluation data than it did in calibration (their "
            f"distributions are {drift:.2f} apart), and {saturated_ratio:.1%} of them are clipped.",
            evidence={"drift": drift, "saturated_ratio": saturated_ratio},
            remedy="Calibrate on data like that of the evaluation.",
            patch=_calibrate_on_evaluation(case),
        )
        return


def _calibrate_on_evaluation(case: Case) -> dict[str, Any] | None:
    evaluation = case.spec.evaluation
    return {"calibration": {"dataset": evaluation.dataset, "samples": case.observation.rows}} if evaluation else None


# --- Calibration data -------------------------------------------------------------------------------------------------


def _calibration_data(report: CalibrationReport | None, spec: JobSpec) -> Iterator[Finding]:
    if report is None:
        return
    steps = reversed(report.convergence)
    half = next((step.range_share for step in steps if 2 * step.samples <= report.samples), 0.0)
    if report.samples < FEW_SAMPLES or half < LEAST_SETTLED:
        yield _too_small(report.samples, half, spec)
    if report.duplicates > DUPLICATED * report.samples:
        yield _duplicate_samples(report)
    yield from map(_constant_input, report.constant_inputs)
    yield from map(_non_finite_input, report.non_finite_inputs)


def _too_small(samples: int, range_share: float, spec: JobSpec) -> Finding:
    return Finding(
        severity="warning" if samples < FEW_SAMPLES else "info",
        code="calibration-too-small",
        message=f"After half of the {samples} calibration samples the ranges had reached {range_share:.0%} of their "
        "final size: more samples would still widen them.",
        evidence={"samples": samples, "range_share": range_share},
        remedy="Calibrate on more samples.",
        patch={"calibration": {"samples": max(128, 4 * samples)}} if spec.calibration else None,
    )


def _duplicate_samples(report: CalibrationReport) -> Finding:
    return Finding(
        severity="info",
        code="duplicate-samples",
        message=f"{report.duplicates} of {report.samples} calibration samples are copies of others.",
        evidence={"duplicates": report.duplicates},
        remedy="Calibrate on different samples.",
    )


def _constant_input(name: str) -> Finding:
    return Finding(
        severity="info",
        code="constant-input",
        message=f"The input {name} is the same in every calibration sample: the model was not run on any other value.",
        evidence={"input": name},
        remedy="Calibrate on data in which it varies as it will in use.",
    )


def _non_finite_input(name: str) -> Finding:
    return Finding(
        severity="warning",
        code="non-finite-input",
        message=f"The input {name} of the calibration data holds NaN or infinity; ranges were fixed without them.",
        evidence={"input": name},
        remedy="Remove them from the data.",
    )
