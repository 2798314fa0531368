"""The diagnosis of a job: all that is known of each layer beside its scheme, put into the rows of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, fx

from fewbit.contract.report import SQNR_CAP_DB, LayerError, LayerReport, SensitivitySummary
from fewbit.contract.spec import ReportParts
from workers.engine.calibration.activation_statistics import activation_stats, subsample
from workers.engine.calibration.conversion import Conversion
from workers.engine.data import Batch, Data
from workers.engine.graph.run import ProgramRun, primary_output
from workers.engine.measurement.float_pass import Observation, output_rows
from workers.engine.measurement.sensitivity import Sensitivity, measure_sensitivity
from workers.engine.quantization.reference import Reference
from workers.engine.quantization.repair import with_finite_weights
from workers.engine.quantization.weights import sqnr_db
from workers.engine.reporting.layer_rows import report_rows


@dataclass(frozen=True)
class Diagnosis:
    """``rows``: the layer table with all findings about single layers; ``expected``: the quantized model's output for
    the first batch."""

    rows: tuple[LayerReport, ...]
    expected: np.ndarray[Any, Any]
    sensitivity: SensitivitySummary | None


def diagnose(
    conversion: Conversion,
    reference: Reference,
    observation: Observation,
    data: Data,
    parts: ReportParts,
    advance: Callable[[float], None],
) -> Diagnosis:
    """Run the quantized model next to what was observed of the float one, and measure each layer's sensitivity."""
    expected, accumulated = run_reference(reference, next(data.batches()), observation, parts.errors)
    finite = replace(conversion, program=with_finite_weights(conversion.program))
    sensitivity = measure_sensitivity(parts.sensitivity, finite, data, advance)
    qparams = {node: fixed.qparams for node, fixed in conversion.ranges.items()}
    rows = zip(conversion.layers, report_rows(conversion, observation), strict=True)
    return Diagnosis(
        rows=tuple(
            row.model_copy(
                update={
                    "activations": activation_stats(layer, observation.inputs, qparams, conversion.calibration.inputs),
                    "saturation": observation.layers[row.name].saturation,
                    "error": _layer_error(row, accumulated, sensitivity),
                }
            )
            for layer, row in rows
        ),
        expected=expected,
        sensitivity=sensitivity.summary if sensitivity else None,
    )


def _layer_error(
    row: LayerReport, accumulated: Mapping[str, float], sensitivity: Sensitivity | None
) -> LayerError | None:
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


def run_reference(
    reference: Reference, batch: Batch, observation: Observation, errors: bool
) -> tuple[np.ndarray[Any, Any], dict[str, float]]:
    """The quantized model's output for a batch, a row per sample; and by layer, if ``errors`` are asked for, the SQNR
    in dB of its output against the float model's, with all errors accumulated up to it (of the first call)."""
    calls = {record.node: record.name for record in reference.record.layers} | dict(reference.record.float_layers)
    calls = calls if errors else {}
    nodes = {node: calls[node.name] for node in reference.program.graph.nodes if node.name in calls}
    accumulated: dict[str, float] = {}

    def around(node: fx.Node, compute: Callable[[], Any], _: Callable[[Any], Any]) -> Any:
        result = compute()
        output = result[0] if isinstance(result, list | tuple) else result
        expected = observation.layers[nodes[node]].first_output
        if expected is not None and isinstance(output, Tensor) and nodes[node] not in accumulated:
            actual = subsample(output)
            if actual.shape == expected.shape:
                accumulated[nodes[node]] = round(sqnr_db(expected, actual), 2)
        return result

    run = ProgramRun(reference.program, dict.fromkeys(nodes, around))
    return output_rows(primary_output(run.outputs(batch.inputs)), batch), accumulated
