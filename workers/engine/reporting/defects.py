"""Defects of weights, activations and calibration data that cost accuracy: each named by its layer, with the change to
the job that mends it.

A number alone is no defect: an outlier is one where it takes the levels from all other values of its row, a loud
channel where moving its scale into the weights would bring the layer's output 3 dB nearer to float.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewbit.contract.report import CalibrationReport, Finding, LayerReport
from fewbit.contract.spec import JobSpec
from fewbit.runtime.program import Program
from workers.engine.calibration.calibrate import Calibrated
from workers.engine.calibration.smooth import possible_gain_db
from workers.engine.graph.layers import Layer
from workers.engine.measurement.float_pass import Observation
from workers.engine.quantization.plan import Planned
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.repair import non_finite
from workers.engine.reporting.patches import exact, left_float, rule

LOST = 0.5  # of a row's weights rounded to zero
LEAST_ROW = 16  # shorter rows (depthwise filters) have no crowd to lose
OUTLIER = 100.0  # times the row's median magnitude
TORCH_FLOOR = torch.finfo(torch.float32).eps  # under the scale, in torch.ao's and torchao's observers
LOUD_CHANNEL = 20.0  # times the median channel's largest magnitude
LEAST_GAIN_DB = 3.0
LEAST_OWN_DB = 25.0  # where a loud channel cannot be smoothed, it is a defect below this
FEW_SAMPLES = 8
LEAST_SETTLED = 0.9  # of the final range after half the samples
DRIFTED, CLIPPED = 0.25, 0.01
DUPLICATED = 0.5


@dataclass(frozen=True)
class Case:
    """All that the rules look at."""

    spec: JobSpec
    program: Program
    planned: Sequence[Planned]
    quantized: Sequence[QuantizedLayer]
    rows: Sequence[LayerReport]
    seen: Observation
    calibrated: Calibrated


def defects(case: Case) -> tuple[Finding, ...]:
    rows = {each.name: each for each in case.rows}
    return (
        *_non_finite(case),
        *(found for each in case.quantized if (found := _weights(case, each)) is not None),
        *_loud_channels(case, rows),
        *_unreached(case),
        *_tied(case),
        *_drifted(case),
        *_calibration(case.calibrated.report, case.spec),
    )


# --- Weights ----------------------------------------------------------------------------------------------------------


def _weights(case: Case, quantized: QuantizedLayer) -> Finding | None:
    layer, name = quantized.layer, quantized.layer.name
    largest = max(float(operand.value.detach().abs().amax()) for operand in layer.operands if operand.value.numel())
    if 0 < largest <= TORCH_FLOOR * 127.5:
        return Finding(
            severity="warning",
            code="numeric",
            layer=name,
            message=f"The largest weight is {largest:.3g}. Stock quantizers put a floor of {TORCH_FLOOR:.3g} under a "
            "scale, and round this whole layer to zeros. Here it keeps its levels; whether it does anything in the "
            "model is another question.",
            evidence={"max_abs": largest, "floor": TORCH_FLOOR},
            remedy="Rescale the layer before exporting, or leave it float.",
            patch=left_float(case.spec, name),
        )
    lost = _lost_row(layer.weight.detach(), quantized, layer.operands[0].reduce)
    if lost is not None:
        return _one_outlier(case, name, lost)
    stats = quantized.stats
    if quantized.weights[0].granularity == "per_tensor" and stats is not None and stats.zeroed_ratio > LOST:
        return Finding(
            severity="warning",
            code="outlier",
            layer=name,
            message=f"{stats.zeroed_ratio:.0%} of the weights round to zero: the largest set the scale of all rows.",
            evidence={"zeroed_ratio": round(stats.zeroed_ratio, 4)},
            remedy="Quantize this layer per channel.",
            patch=rule(case.spec, {"match": exact(name), "weights": {"granularity": "per_channel"}}),
        )
    return None


def _one_outlier(case: Case, name: str, lost: _Lost) -> Finding:
    """Smaller groups would save the other weights, and still round the one that counts: float was nearer in every model
    tried (36.8 dB against 36.6 with groups of 8, and 36.6 without)."""
    return Finding(
        severity="warning",
        code="outlier",
        layer=name,
        message=f"In row {lost.worst} of the weight one value is {lost.ratio:.0f} times the median and sets the scale: "
        f"{lost.zeroed:.0%} of the others round to zero. Rows of this layer that so lose more than half: {lost.rows}.",
        evidence={"rows": lost.rows, "row": lost.worst, "ratio": round(lost.ratio, 1), "zeroed_ratio": lost.zeroed},
        remedy="Leave this layer float, or retrain it without the outlier.",
        patch=left_float(case.spec, name),
    )


@dataclass(frozen=True)
class _Lost:
    rows: int
    worst: int
    ratio: float
    zeroed: float


def _lost_row(weight: Tensor, quantized: QuantizedLayer, reduce: tuple[int, ...]) -> _Lost | None:
    """Rows that one weight takes the levels from; ``worst`` is the one with the largest ratio."""
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
    return _Lost(int(lost.sum()), int(suspect[worst]), float(ratios[worst]), round(float(zeroed[worst]), 4))


def _non_finite(case: Case) -> Iterator[Finding]:
    planned = {source.name: each.layer.name for each in case.planned for source in each.layer.sources}
    for name, count in non_finite(case.program).items():
        layer = planned.get(name)
        yield Finding(
            severity="error",
            code="nan-inf",
            layer=layer or name,
            message=f"NaN or infinity in {name}: {count} of its values. What the model computes from it is lost; "
            "layers behind it were measured as if it were repaired.",
            evidence={"tensor": name, "non_finite": count},
            remedy="Find where training produced it, and export again"
            + ("; or have it repaired: NaN becomes 0, infinity the largest finite magnitude." if layer else "."),
            patch=rule(case.spec, {"match": exact(layer), "weights": {"non_finite": "repair"}}) if layer else None,
        )  # fmt: skip


def _tied(case: Case) -> Iterator[Finding]:
    """Layers that share one weight: it is kept once, but its error counts in each place."""
    groups: dict[tuple[int, int], list[str]] = {}
    for each in case.quantized:
        weight = each.layer.weight
        groups.setdefault((weight.data_ptr(), weight.numel()), []).append(each.layer.name)
    for names in groups.values():
        if len(names) > 1:
            yield Finding(
                severity="info",
                code="tied",
                layer=names[-1],
                message=f"{' and '.join(names)} share one weight. The pt2 artifact keeps one integer copy, a "
                "TorchScript artifact packs one for each; quantize_dynamic would keep the float weight too.",
                evidence={"layers": names},
                remedy="Nothing has to be done. Left float, its rounding error is gone from all places at once.",
                patch=left_float(case.spec, *names),
            )


# --- Activations ------------------------------------------------------------------------------------------------------


def _loud_channels(case: Case, rows: Mapping[str, LayerReport]) -> Iterator[Finding]:
    loud = {
        each.name: each.activations.outlier_channels[0]
        for each in case.rows
        if each.quantized and each.activations and each.activations.outlier_channels
        and each.activations.outlier_channels[0].ratio >= LOUD_CHANNEL
        and each.scheme is not None and each.scheme.activations is not None
    }  # fmt: skip
    if not loud:
        return
    gains = possible_gain_db(case.program, case.planned, loud, case.seen.inputs)
    for name, channel in loud.items():
        own = rows[name].error.output_sqnr_db if rows[name].error else None  # type: ignore[union-attr]
        gain = gains.get(name)
        smoothable = gain is not None and case.spec.smooth is None
        if (gain is not None and gain < LEAST_GAIN_DB) or (gain is None and (own is None or own >= LEAST_OWN_DB)):
            continue
        advice = "moved into the weights it would cost nothing" if smoothable else "it cannot be moved into the weights"
        yield Finding(
            severity="warning",
            code="activation-outlier",
            layer=name,
            message=f"Input channel {channel.channel} is {channel.ratio:.0f} times as large as the median channel and "
            f"takes the levels of all others: {advice}.",
            evidence={"channel": channel.channel, "ratio": channel.ratio, "max_abs": channel.max_abs, "gain_db": gain},
            remedy="Smooth the job: SmoothQuant moves the channel's scale into the weights."
            if smoothable
            else "Leave this layer float.",
            patch={"smooth": {"alpha": "auto"}} if smoothable else left_float(case.spec, name),
        )


def _unreached(case: Case) -> Iterator[Finding]:
    layers = {each.layer.name: each.layer for each in case.quantized}
    for name in (each for each in case.calibrated.unreached if each in layers):
        there = _is_reached_in_evaluation(case, layers[name])
        yield Finding(
            severity="warning",
            code="not-calibrated",
            layer=name,
            message="No calibration sample reached this layer: its branch was never taken, or got no rows. Only its "
            "weights are integers, and ranges behind it were fixed without it.",
            evidence={"reached_in_evaluation": there},
            remedy="Calibrate on the evaluation data, or better, on more data that takes this branch."
            if there
            else "Add calibration samples that take this branch; until then, leave the layer float.",
            patch=_calibrate_on_evaluation(case.spec, case.seen.rows) if there else left_float(case.spec, name),
        )


def _is_reached_in_evaluation(case: Case, layer: Layer) -> bool:
    if layer.kind == "nested":
        return layer.name not in case.seen.branches.never_run
    watch = case.seen.inputs.get(layer.uses[0].input)
    return watch is not None and watch.seen


def _drifted(case: Case) -> Iterator[Finding]:
    for row in case.rows:
        seen = row.activations
        if seen is None or seen.drift is None or seen.saturated_ratio is None:
            continue
        if seen.drift > DRIFTED and seen.saturated_ratio > CLIPPED:
            yield Finding(
                severity="warning",
                code="calibration-drift",
                layer=row.name,
                message=f"What this layer reads in the evaluation data is not what it read in calibration (their "
                f"distributions are {seen.drift:.2f} apart), and {seen.saturated_ratio:.1%} of it is clipped.",
                evidence={"drift": seen.drift, "saturated_ratio": seen.saturated_ratio},
                remedy="Calibrate on data like that of the evaluation.",
                patch=_calibrate_on_evaluation(case.spec, case.seen.rows),
            )
            return  # one layer says it: the others read what follows from it


def _calibrate_on_evaluation(spec: JobSpec, samples: int) -> dict[str, Any] | None:
    return {"calibration": {"dataset": spec.evaluation.dataset, "samples": samples}} if spec.evaluation else None


# --- Calibration data -------------------------------------------------------------------------------------------------


def _calibration(report: CalibrationReport | None, spec: JobSpec) -> Iterator[Finding]:
    if report is None:
        return
    half = next((each.range_share for each in reversed(report.convergence) if 2 * each.samples <= report.samples), 0.0)
    if report.samples < FEW_SAMPLES or half < LEAST_SETTLED:
        yield Finding(
            severity="warning" if report.samples < FEW_SAMPLES else "info",
            code="calibration-too-small",
            message=f"After half of the {report.samples} calibration samples the ranges had reached {half:.0%} of what "
            "they became: more samples would still widen them.",
            evidence={"samples": report.samples, "range_share": half},
            remedy="Calibrate on more samples.",
            patch={"calibration": {"samples": max(128, 4 * report.samples)}} if spec.calibration else None,
        )
    if report.duplicates > DUPLICATED * report.samples:
        yield Finding(
            severity="info",
            code="duplicate-samples",
            message=f"{report.duplicates} of {report.samples} calibration samples are copies of others.",
            evidence={"duplicates": report.duplicates},
            remedy="Calibrate on different samples.",
        )
    for name in report.constant_inputs:
        yield Finding(
            severity="info",
            code="constant-input",
            message=f"The input {name} is the same in every calibration sample: what the model does with another value "
            "was not seen.",
            evidence={"input": name},
            remedy="Calibrate on data in which it varies as it will in use.",
        )
    for name in report.non_finite_inputs:
        yield Finding(
            severity="warning",
            code="non-finite-input",
            message=f"The input {name} of the calibration data holds NaN or infinity; ranges were fixed without them.",
            evidence={"input": name},
            remedy="Clean the data.",
        )
