"""The diagnosis of a job: what is known of every layer beside its scheme, put into the rows of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, fx

from fewbit.contract.report import SQNR_CAP_DB, CalibrationReport, LayerError, LayerReport, SensitivitySummary
from fewbit.contract.spec import ReportParts
from fewbit.runtime.program import Program
from workers.engine.calibration.activation_statistics import share_of, stats_of
from workers.engine.calibration.calibrate import Calibrated
from workers.engine.data import Batch, Data
from workers.engine.graph.layers import Layer
from workers.engine.graph.run import ProgramRun, primary_output
from workers.engine.measurement.float_pass import Observation, output_rows
from workers.engine.measurement.sensitivity import Sensitivity, sensitivity_of
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.reference import Reference
from workers.engine.quantization.repair import cleaned
from workers.engine.quantization.weights import sqnr_db


@dataclass(frozen=True)
class Diagnosis:
    """``rows``: the layer table with what was found; ``expected``: what the quantized model gives for the first
    batch."""

    rows: tuple[LayerReport, ...]
    expected: np.ndarray[Any, Any]
    sensitivity: SensitivitySummary | None
    calibration: CalibrationReport | None


def diagnose(
    program: Program,
    reference: Reference,
    rows: Sequence[LayerReport],
    layers: Sequence[Layer],
    quantized: Sequence[QuantizedLayer],
    calibrated: Calibrated,
    seen: Observation,
    data: Data,
    parts: ReportParts,
    advance: Callable[[float], None],
) -> Diagnosis:
    """``layers`` and ``quantized`` are of ``program``; ``rows`` are theirs, in order."""
    expected, accumulated = follow(reference, next(data.batches()), seen, parts.errors)
    sensitivity = sensitivity_of(parts.sensitivity, cleaned(program), quantized, calibrated.ranges, data, advance)
    qparams = {node: fixed.qparams for node, fixed in calibrated.ranges.items()}
    by_name = {layer.name: layer for layer in layers}
    return Diagnosis(
        rows=tuple(
            row.model_copy(
                update={
                    "activations": stats_of(by_name[row.name], seen.inputs, qparams, calibrated.inputs),
                    "saturation": seen.layers[row.name].saturation,
                    "error": _error(row, accumulated, sensitivity),
                }
            )
            for row in rows
        ),
        expected=expected,
        sensitivity=sensitivity.summary if sensitivity else None,
        calibration=calibrated.report,
    )


def _error(row: LayerReport, accumulated: Mapping[str, float], sensitivity: Sensitivity | None) -> LayerError | None:
    through = accumulated.get(row.name)
    own = sensitivity.own.get(row.name) if sensitivity else None
    spared = sensitivity.spared_db.get(row.name) if sensitivity else None
    output = row.error.output_sqnr_db if row.error else None
    if not row.quantized and through is not None:
        output = SQNR_CAP_DB  # the same operation on the same input
    if (own, spared, output, through) == (None, None, None, None):
        return None
    return LayerError(
        output_sqnr_db=output,
        accumulated_sqnr_db=through,
        sensitivity=float(f"{own:.6g}") if own is not None else None,
        spared_gain_db=spared,
    )


def follow(
    reference: Reference, batch: Batch, seen: Observation, errors: bool
) -> tuple[np.ndarray[Any, Any], dict[str, float]]:
    """What the quantized model gives for a batch, a row a sample; and, by layer, how far its output has come from the
    float model's by then, in dB (the worst of its calls that was seen)."""
    calls = {each.node: each.name for each in reference.record.layers} | dict(reference.record.float_layers)
    calls = calls if errors else {}
    nodes = {node: calls[node.name] for node in reference.program.graph.nodes if node.name in calls}
    accumulated: dict[str, float] = {}

    def around(node: fx.Node, compute: Callable[[], Any], _: Callable[[Any], Any]) -> Any:
        result = compute()
        first = result[0] if isinstance(result, list | tuple) else result
        wanted = seen.layers[nodes[node]].first_output
        if wanted is not None and isinstance(first, Tensor) and nodes[node] not in accumulated:
            given = share_of(first)
            if given.shape == wanted.shape:
                accumulated[nodes[node]] = round(sqnr_db(wanted, given), 2)
        return result

    run = ProgramRun(reference.program, dict.fromkeys(nodes, around))
    return output_rows(primary_output(run.outputs(batch.inputs)), batch), accumulated
