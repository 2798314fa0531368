"""Findings: what a user should know beyond the layer table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fewbit.contract.report import Finding, Latency, LayerReport, ReportArtifact
from fewbit.contract.spec import JobSpec
from fewbit.runtime.program import Program
from workers.engine.calibration.conversion import Conversion
from workers.engine.graph.names import op_name
from workers.engine.graph.ops import KNOWN_NAMESPACES
from workers.engine.graph.program import layer_path
from workers.engine.graph.random_draws import random_draws
from workers.engine.graph.source_lines import source_line
from workers.engine.graph.torch_internals import is_operator
from workers.engine.reporting.patches import leave_float

LEAST_OWN_SQNR_DB = 15.0
WORTH_SHRINKING = 1 << 20  # bytes of the upload: below, a graph is larger than its weights
WORTH_SPEEDING_UP_MS = 10.0  # below this call overhead and a busy machine weigh as much as the arithmetic


def conversion_findings(conversion: Conversion, rows: Sequence[LayerReport], spec: JobSpec) -> tuple[Finding, ...]:
    """All that is known before anything is measured."""
    full_range = [
        quantized.layer.name
        for quantized in conversion.quantized
        if quantized.arithmetic.mode != "float" and not quantized.arithmetic.reduced
    ]
    return (
        *program_findings(conversion.program),
        *random_in_forward(conversion.program),
        *layer_findings(rows, spec),
        *((full_range_activations(full_range),) if full_range else ()),
        *custom_operators(conversion.program),
        *((calibrated_on_evaluation(),) if spec.method == "static" and spec.calibration is None else ()),
    )


def program_findings(program: Program) -> Iterator[Finding]:
    """Findings about the graph."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.dropout.default and node.args[2]:
            yield Finding(
                severity="warning",
                code="train-mode",
                layer=layer_path(node)[0],
                message="Dropout is active in the graph: the model was exported in train mode, and its output is "
                "random.",
                remedy="Call model.eval() before torch.export.export.",
            )
            return


def random_in_forward(program: Program) -> Iterator[Finding]:
    """Dropout has a finding of its own."""
    found = [node for node in random_draws(program) if "dropout" not in op_name(node)]
    if found:
        operator, line = op_name(found[0]), source_line(found[0])
        yield Finding(
            severity="warning",
            code="random-in-forward",
            layer=layer_path(found[0])[0] or None,
            message=f"The program draws random numbers with {operator}{f' ({line})' if line else ''}: two calls on one "
            "input give two answers. The artifacts were loaded and run, but no distance from float can be measured.",
            remedy="Give the noise to forward as an argument, or export what comes before the draw.",
        )


def layer_findings(rows: Sequence[LayerReport], spec: JobSpec) -> Iterator[Finding]:
    """Findings about the layer table."""
    for row in rows:
        own = row.error.output_sqnr_db if row.error is not None else None
        if row.quantized and own is not None and own < LEAST_OWN_SQNR_DB:
            yield Finding(
                severity="warning",
                code="low-sqnr",
                layer=row.name,
                message=f"The layer's int8 output is only {own} dB from its float output on the same input.",
                remedy="Leave this layer float.",
                patch=leave_float(spec, row.name),
            )
    fastpath = [row.name for row in rows if row.eager.reason is not None and row.eager.reason.code == "fastpath"]
    if fastpath:
        yield Finding(
            severity="info",
            code="fastpath",
            layer=fastpath[0],
            message=f"Plain quantize_dynamic would swap {_count(len(fastpath), 'layer', 'layers')} inside "
            "nn.TransformerEncoderLayer, and the model would then fail in eval under no_grad. The graph route is not "
            "affected.",
        )


def synthetic_data() -> Finding:
    return Finding(
        severity="info",
        code="synthetic-data",
        message="No dataset was given. Closeness was measured on inputs made from the model's signature: these numbers "
        "are weak, and say nothing about accuracy.",
        remedy="POST /datasets with real samples, and name them in evaluation.dataset.",
    )


def evaluated_on_calibration() -> Finding:
    return Finding(
        severity="info",
        code="evaluated-on-calibration",
        message="No evaluation dataset was given. Closeness was measured on the calibration data, without its labels: "
        "fresh data may show a little more loss, and nothing here speaks of accuracy.",
        remedy="POST /datasets with labelled samples that calibration does not see, and name them in "
        "evaluation.dataset.",
    )


def full_range_activations(names: Sequence[str]) -> Finding:
    return Finding(
        severity="info",
        code="saturation",
        message=f"{_count(len(names), 'layer uses', 'layers use')} all eight bits of the activations, because the CPU "
        "of this job sums in 32 bits. On a CPU without VNNI the same TorchScript artifact would saturate.",
        remedy="If such a CPU will serve the model, set target to it (avx2 or avx512): seven bits never saturate.",
    )


def latency_findings(latency: Latency) -> Iterator[Finding]:
    """TorchScript slower than float, by the fastest run of each: a busy machine slows some runs by chance. The .pt2 is
    portable by design, not fast."""
    measured = latency.artifacts.get("torchscript")
    if measured is None or measured.min <= latency.before_ms.min:
        return
    small = latency.before_ms.min < WORTH_SPEEDING_UP_MS
    yield Finding(
        severity="info" if small else "warning",
        code="slower-than-float",
        message=f"The TorchScript artifact takes {measured.min / latency.before_ms.min:.2f} times as long as float"
        + (": at so few milliseconds a batch, call overhead outweighs the arithmetic." if small else "."),
        remedy="Serve larger batches, or exclude the smallest layers.",
    )


def size_findings(artifacts: Sequence[ReportArtifact], before: int) -> Iterator[Finding]:
    """``before``: bytes of the upload."""
    larger = [artifact for artifact in artifacts if artifact.size > before]
    if larger:
        shown = ", ".join(f"{artifact.name} ({artifact.size / before:.2f} times)" for artifact in larger)
        yield Finding(
            severity="info" if before < WORTH_SHRINKING else "warning",
            code="larger-than-float",
            message=f"Larger than the upload: {shown}."
            + (
                " In so small a model the graph and the scales outweigh the weights."
                if before < WORTH_SHRINKING
                else ""
            ),
            remedy="Deliver the smallest artifact that you can load; layers[].reason says what stayed float.",
        )


def custom_operators(program: Program) -> Iterator[Finding]:
    """Operators that torch itself does not have."""
    targets = {node.target for node in program.graph.nodes if is_operator(node.target)}
    names = sorted({str(target) for target in targets if target.namespace not in KNOWN_NAMESPACES})
    if names:
        yield Finding(
            severity="warning",
            code="custom-operator",
            message=f"The artifacts call {', '.join(names)}: they load only where the library that defines it is "
            "imported.",
            remedy="Export the model without it, or import that library before loading.",
        )


def calibrated_on_evaluation() -> Finding:
    return Finding(
        severity="info",
        code="calibrated-on-evaluation",
        message="The job names no calibration dataset, so ranges were fixed on the evaluation data: its numbers are a "
        "little better than fresh data will show.",
        remedy="Name a part of the training data in calibration.dataset.",
    )


def not_finite() -> Finding:
    return Finding(
        severity="error",
        code="nan-inf",
        message="The float model itself returns NaN or infinity on this data.",
        remedy="Check the inputs' preprocessing and the model's weights.",
    )


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
