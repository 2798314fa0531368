"""The layer table and the findings of an eager job: what torch.ao did with each layer, and why it left the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fewbit.contract.report import (
    ActivationScheme,
    EagerVerdict,
    Finding,
    LayerError,
    LayerReport,
    Scheme,
    WeightScheme,
)
from fewbit.contract.resources import Reason
from fewbit.contract.spec import JobSpec
from fewbit.runtime.program import Program
from workers.engine.calibration.conversion import Conversion
from workers.engine.explanation.quantize_dynamic import predict_quantize_dynamic
from workers.engine.graph.layers import Layer
from workers.engine.graph.program import module_classes
from workers.engine.measurement.float_pass import Observation
from workers.engine.quantization.plan import Planned
from workers.engine.quantization.weight_statistics import weight_stats
from workers.engine.quantization.weights import QuantizedWeight
from workers.engine.reporting import findings
from workers.engine.reporting.layer_rows import report_rows

# FX does not look into modules of torch.nn except plain containers: the layers inside stay as they are.
LEAVES = frozenset(
    f"torch.nn.{name}"
    for name in ("MultiheadAttention", "Transformer", "TransformerEncoder", "TransformerDecoder",
                 "TransformerEncoderLayer", "TransformerDecoderLayer")
)  # fmt: skip


@dataclass(frozen=True)
class ReplacedLayer:
    """A layer that torch.ao replaced: its weight in integers, and the SQNR in dB of its own output against float."""

    weight: QuantizedWeight
    output_sqnr_db: float | None = None


def eager_rows(
    conversion: Conversion, replaced: Mapping[str, ReplacedLayer], observation: Observation, spec: JobSpec
) -> tuple[LayerReport, ...]:
    """The table of the float program, with what torch.ao did to each layer."""
    pairs = zip(conversion.planned, report_rows(conversion, observation), strict=True)
    return tuple(_row(planned, row, replaced.get(row.name), spec) for planned, row in pairs)


def _row(planned: Planned, row: LayerReport, replaced: ReplacedLayer | None, spec: JobSpec) -> LayerReport:
    if replaced is not None:
        return _quantized_row(planned.layer, row, replaced, spec)
    if planned.reason is not None and planned.reason.code == "excluded-by-user":
        return row
    reason = _static_reason(planned.layer) if spec.method == "static" else _dynamic_reason(planned.layer)
    verdict = row.eager if spec.method == "static" else EagerVerdict(quantized=False, reason=reason)
    return row.model_copy(update={"reason": reason, "eager": verdict})


def _quantized_row(layer: Layer, row: LayerReport, replaced: ReplacedLayer, spec: JobSpec) -> LayerReport:
    weight, own = replaced.weight, replaced.output_sqnr_db
    finite = bool(torch.isfinite(layer.weight).all()) and bool(torch.isfinite(weight.scale).all())
    return row.model_copy(
        update={
            "quantized": True,
            "reason": None,
            "scheme": _scheme(weight, spec),
            "weights": weight_stats(layer.weight, weight, layer.operands[0].reduce) if finite else None,
            "error": LayerError(output_sqnr_db=round(own, 2)) if own is not None else None,
        }
    )


def _scheme(weight: QuantizedWeight, spec: JobSpec) -> Scheme:
    """torch.ao takes one range for a whole activation, and uses seven bits of it, on every CPU."""
    activations = ActivationScheme(
        dtype="uint8",
        mode="static" if spec.method == "static" else "dynamic",
        granularity="per_tensor",
        reduce_range=True,
    )
    return Scheme(weights=WeightScheme(dtype="int8", granularity=weight.granularity), activations=activations)


def _dynamic_reason(layer: Layer) -> Reason:
    verdict = predict_quantize_dynamic(layer)
    if verdict.reason is not None and not verdict.quantized:
        return verdict.reason
    return Reason(
        code="not-swapped",
        message=f"quantize_dynamic left the {layer.type} at {layer.name} in place.",
        evidence={"type": layer.type, "path": layer.name},
        remedy="Post the job with backend: graph.",
        patch={"backend": "graph"},
    )


def _static_reason(layer: Layer) -> Reason:
    leaf = next(((path, kind) for path, kind in module_classes(layer.uses[0].node) if kind in LEAVES), None)
    if leaf is not None:
        return Reason(
            code="fx-leaf",
            message=f"{leaf[0]} is a {leaf[1]}, which FX treats as one operation: it never sees the layers inside.",
            evidence={"module": leaf[1], "path": leaf[0]},
            remedy="Post the job with backend: graph.",
            patch={"backend": "graph"},
        )
    return Reason(
        code="fx-no-pattern",
        message=f"The x86 default mapping has no static pattern for {layer.type or layer.op}.",
        evidence={"type": layer.type, "op": layer.op},
        remedy="Post the job with backend: graph.",
        patch={"backend": "graph"},
    )


# --- Findings ---------------------------------------------------------------------------------------------------------


def eager_findings(program: Program, rows: Sequence[LayerReport], spec: JobSpec) -> tuple[Finding, ...]:
    """The findings of a graph job, except those that hold only there."""
    layer_findings = [finding for finding in findings.layer_findings(rows, spec) if finding.code != "fastpath"]
    inside = [row for row in rows if row.quantized and row.eager.reason and row.eager.reason.code == "fastpath"]
    return (
        *findings.program_findings(program),
        *map(_adapt_patch, layer_findings),
        *((_fastpath_off(inside),) if inside else ()),
        *findings.custom_operators(program),
        *((findings.calibrated_on_evaluation(),) if spec.method == "static" and spec.calibration is None else ()),
    )


def shared_module(forgotten: tuple[str, str]) -> Finding:
    """``forgotten``: (layer, path at which its float module is still called)."""
    layer, path = forgotten
    return Finding(
        severity="warning",
        code="shared-module",
        layer=layer,
        message=f"The same module is also called as {path}, where quantize_dynamic left it in place: those calls run "
        "in float, on a second copy of the weight.",
        remedy="Post the job with backend: graph, which quantizes every call.",
        patch={"backend": "graph"},
    )


def _adapt_patch(finding: Finding) -> Finding:
    """A patch of weight settings needs the graph backend: torch.ao's defaults have none."""
    if finding.code != "outlier" or finding.patch is None:
        return finding
    return finding.model_copy(update={"patch": finding.patch | {"backend": "graph"}})


def _fastpath_off(rows: Sequence[LayerReport]) -> Finding:
    return Finding(
        severity="info",
        code="fastpath",
        layer=rows[0].name,
        message="Layers inside nn.TransformerEncoderLayer were replaced. The artifact was written with its fast path "
        "off, and runs; the same module in Python would fail in eval under no_grad.",
        remedy="In Python, call torch.backends.mha.set_fastpath_enabled(False) before the model.",
    )
