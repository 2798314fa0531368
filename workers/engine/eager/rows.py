"""The layer table and the findings of an eager job: what torch.ao did with each layer, and why it left the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from workers.engine.explanation.eager_verdict import eager_verdict
from workers.engine.graph.layers import Layer
from workers.engine.graph.program import module_classes
from workers.engine.measurement.float_pass import Observation
from workers.engine.quantization.plan import Planned
from workers.engine.quantization.weights import QuantizedWeight, weight_stats
from workers.engine.reporting import findings
from workers.engine.reporting.layer_rows import report_rows

# FX follows no module of torch.nn that is not a mere container: what is inside stays as it is.
LEAVES = frozenset(
    f"torch.nn.{each}"
    for each in ("MultiheadAttention", "Transformer", "TransformerEncoder", "TransformerDecoder",
                 "TransformerEncoderLayer", "TransformerDecoderLayer")
)  # fmt: skip


@dataclass(frozen=True)
class Replaced:
    """A layer that torch.ao replaced: its weight in integers, and its own output against float in dB."""

    weight: QuantizedWeight
    output_sqnr_db: float | None = None


def eager_rows(
    planned: Sequence[Planned], replaced: Mapping[str, Replaced], seen: Observation, spec: JobSpec
) -> tuple[LayerReport, ...]:
    """The table of the float program, with what happened to each layer."""
    rows = zip(planned, report_rows(planned, (), seen), strict=True)
    return tuple(_row(each, row, replaced.get(each.layer.name), spec) for each, row in rows)


def _row(planned: Planned, row: LayerReport, done: Replaced | None, spec: JobSpec) -> LayerReport:
    if done is not None:
        return _quantized_row(planned.layer, row, done, spec)
    if planned.reason is not None and planned.reason.code == "excluded-by-user":
        return row
    reason = _static_reason(planned.layer) if spec.method == "static" else _dynamic_reason(planned.layer)
    verdict = row.eager if spec.method == "static" else EagerVerdict(quantized=False, reason=reason)
    return row.model_copy(update={"reason": reason, "eager": verdict})


def _quantized_row(layer: Layer, row: LayerReport, done: Replaced, spec: JobSpec) -> LayerReport:
    own = done.output_sqnr_db
    finite = bool(torch.isfinite(layer.weight).all()) and bool(torch.isfinite(done.weight.scale).all())
    return row.model_copy(
        update={
            "quantized": True,
            "reason": None,
            "scheme": _scheme(done.weight, spec),
            "weights": weight_stats(layer.weight, done.weight, layer.operands[0].reduce) if finite else None,
            "error": LayerError(output_sqnr_db=round(own, 2)) if own is not None else None,
        }
    )


def _scheme(weight: QuantizedWeight, spec: JobSpec) -> Scheme:
    """torch.ao takes one range for a whole activation, and seven of its bits, on every CPU."""
    activations = ActivationScheme(
        dtype="uint8",
        mode="static" if spec.method == "static" else "dynamic",
        granularity="per_tensor",
        reduce_range=True,
    )
    return Scheme(weights=WeightScheme(dtype="int8", granularity=weight.granularity), activations=activations)


def _dynamic_reason(layer: Layer) -> Reason:
    verdict = eager_verdict(layer)
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
            message=f"{leaf[0]} is a {leaf[1]}, which FX takes as one piece: it never sees the layers inside.",
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
    """As for a graph job, but for what only holds there."""
    of_layers = [each for each in findings.layer_findings(rows, spec) if each.code != "fastpath"]
    inside = [row for row in rows if row.quantized and row.eager.reason and row.eager.reason.code == "fastpath"]
    return (
        *findings.program_findings(program),
        *map(_possible, of_layers),
        *((_fastpath_off(inside),) if inside else ()),
        *findings.custom_operators(program),
        *((findings.calibrated_on_evaluation(),) if spec.method == "static" and spec.calibration is None else ()),
    )


def still_float(forgotten: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """``forgotten``: (layer, path at which its float module is still called)."""
    for layer, path in forgotten:
        yield Finding(
            severity="warning",
            code="shared-module",
            layer=layer,
            message=f"The same module is called as {path} too, where quantize_dynamic left it in place: those calls "
            "run in float, on a second copy of the weight.",
            remedy="Post the job with backend: graph, which quantizes every call.",
            patch={"backend": "graph"},
        )


def _possible(finding: Finding) -> Finding:
    """A patch of weight settings is for the graph backend: torch.ao's defaults have none."""
    if finding.code != "outlier" or finding.patch is None:
        return finding
    return finding.model_copy(update={"patch": finding.patch | {"backend": "graph"}})


def _fastpath_off(rows: Sequence[LayerReport]) -> Finding:
    return Finding(
        severity="info",
        code="fastpath",
        layer=rows[0].name,
        message="Layers inside nn.TransformerEncoderLayer were replaced. The artifact was written with "
        "its fast path off, and runs; the same module in Python would fail in eval under no_grad.",
        remedy="There, call torch.backends.mha.set_fastpath_enabled(False) before the model.",
    )
