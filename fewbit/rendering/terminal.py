"""A report on a terminal of 100 columns: the verdict, four numbers, the layers, and what to do next."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fewbit.contract.report import Accuracy, Finding, Gate, LayerReport, Report
from fewbit.contract.resources import Reason
from fewbit.rendering.numbers import decibels, kilobytes, minus, small_share
from fewbit.rendering.words import (
    by_reason,
    by_sensitivity,
    calibration_words,
    first_few,
    float_layers,
    four_numbers,
    layer_name,
    metric_value,
    sensitivity,
    worst_first,
)

_VERDICT = {"pass": "bold white on green4", "warn": "bold black on yellow3", "fail": "bold white on red3"}
_SEVERITY = {"info": ("i", "cyan"), "warning": ("!", "yellow"), "error": ("x", "red")}
SENSITIVE_SHOWN = 5


def standard_output() -> Console:
    """A console on standard output, 100 columns wide if the width is unknown."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else 100)


def print_report(report: Report, console: Console, title: str | None = None) -> None:
    """Print the whole report."""
    console.print(render(report, title))


def render(report: Report, title: str | None = None) -> Group:
    """The whole report, from top to bottom."""
    return Group(*_spaced(
        verdict_line(report, title),
        numbers(report),
        metrics(report.accuracy),
        gates(report.gates),
        layer_table(report.layers),
        reasons(report.layers),
        most_sensitive(report.layers),
        findings(report.findings),
        calibration(report),
        artifacts(report),
    ))  # fmt: skip


def _spaced(*parts: RenderableType | None) -> Iterator[RenderableType]:
    for part in parts:
        if part is not None:
            yield ""
            yield part


# The verdict and the four numbers


def verdict_line(report: Report, title: str | None = None) -> Text:
    line = Text(f" {report.verdict.upper()} ", style=_VERDICT[report.verdict])
    spec = report.spec
    parts = [title or report.model.id, f"{spec.method} {spec.weights.dtype}", report.job]
    return Text.assemble(line, " ", (parts[0], "bold"), ("  ·  " + "  ·  ".join(parts[1:]), "dim"))


def numbers(report: Report) -> Columns:
    """Four panels: coverage, size, accuracy, speed. The number comes first, then what it means."""
    return Columns([_panel(title, *words) for title, words in four_numbers(report).items()], padding=(0, 1))


def _panel(title: str, number: str, words: str) -> Panel:
    return Panel(Text.assemble((number, "bold"), ("\n" + words, "dim")), title=title, box=ROUNDED, width=24, height=7)


def metrics(accuracy: Accuracy | None) -> RenderableType | None:
    """One line per metric, if there are more than the one in the panel."""
    if accuracy is None or len(accuracy.metrics) < 2:
        return None
    lines = [
        Text(f"  {metric.name}  {metric_value(metric, metric.before)} → {metric_value(metric, metric.after)}  {note}")
        for metric, note in ((metric, metric.note.partition(";")[0]) for metric in accuracy.metrics)
    ]
    return Group(Text("Metrics", "bold"), *lines)


def gates(all_gates: Sequence[Gate]) -> Text | None:
    """One line per limit of the spec."""
    if not all_gates:
        return None
    lines = [
        Text.assemble(
            ("  met   " if gate.met else "  FAILS ", "green" if gate.met else "bold red"),
            f"{gate.gate}: limit {gate.limit:g}, ",
            "not measured" if gate.value is None else f"measured {gate.value + 0.0:.4g}",
        )
        for gate in all_gates
    ]
    return Text("\n").join(lines)


# The layers


def layer_table(layers: Sequence[LayerReport]) -> Group:
    """One row per layer. Kernel names are long and repeat, so kernels are numbered. The last column shows what happens
    without Fewbit."""
    kernels = sorted({layer.executed for layer in layers if layer.executed})
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("type", no_wrap=True, max_width=18)
    table.add_column("now", no_wrap=True, min_width=5)
    table.add_column("kernel", no_wrap=True)
    table.add_column("SQNR", no_wrap=True, justify="right", min_width=7)
    table.add_column("with plain\nquantize_dynamic", overflow="fold", min_width=16)
    for layer in layers:
        table.add_row(
            Text(break_at_dots(layer_name(layer.name), 36)),
            Text(layer.type.rsplit(".", 1)[-1]),
            now(layer),
            kernel(layer, kernels),
            sqnr(layer),
            eager(layer),
        )
    asked = any(layer.requested and layer.requested.quantized != layer.quantized for layer in layers)
    unlike = [Text("  ≠ not what the spec asked for", "dim")] if asked else []
    legend = [Text(f"  ({number}) {kernel}", "dim") for number, kernel in enumerate(kernels, 1)]
    return Group(table, Text("Kernels that ran, from the profiler", "bold"), *legend, *unlike)


def now(layer: LayerReport) -> Text:
    """int8 or float, with a mark where the spec asked for the other."""
    word = Text("int8", "green") if layer.quantized else Text("float", "yellow")
    asked = layer.requested.quantized if layer.requested else layer.quantized
    return word if asked == layer.quantized else Text.assemble(word, (" ≠", "bold yellow"))


def kernel(layer: LayerReport, kernels: Sequence[str]) -> Text:
    """The kernel's number, and its time if it was measured."""
    if not layer.executed:
        return Text("none", "dim")
    spent = f" {layer.execution.ms:.2g} ms" if layer.execution else ""
    return Text(f"({kernels.index(layer.executed) + 1}){spent}", "dim")


def break_at_dots(name: str, width: int) -> str:
    """A long fully-qualified name on several lines, broken after dots where possible."""
    if len(name) <= width:
        return name
    cut = name.rfind(".", 0, width) + 1 or width
    return name[:cut] + "\n" + break_at_dots(name[cut:], width)


def sqnr(layer: LayerReport) -> Text:
    value = layer.error.output_sqnr_db if layer.error else None
    if value is None:
        return Text("—", "dim")
    return Text(decibels(value), "" if value >= 20 else "red")


def eager(layer: LayerReport) -> Text:
    """``int8`` with a code is worse than float: the layer is swapped, and then the model fails or answers wrongly."""
    code = layer.eager.reason.code if layer.eager.reason else None
    if layer.eager.quantized:
        return Text.assemble(("int8", "red"), f": {code}") if code else Text("int8", "green")
    return Text.assemble(("float", "yellow"), f": {code or 'no reason known'}")


def reasons(layers: Sequence[LayerReport]) -> RenderableType | None:
    """The reasons and the layers they apply to: first why layers are float here, then what eager would have done."""
    float_here = float_layers(layers)
    verdicts = [(layer.name, layer.eager) for layer in layers if layer.quantized]
    float_in_eager = by_reason([(name, verdict.reason) for name, verdict in verdicts if not verdict.quantized])
    broken_in_eager = by_reason([(name, verdict.reason) for name, verdict in verdicts if verdict.quantized])
    lists = [
        *_reason_list("Why layers stayed float", float_here, with_remedy=True),
        *_reason_list("Int8 here, but float with plain quantize_dynamic", float_in_eager, with_remedy=False),
        *_reason_list("Int8 here, but broken with plain quantize_dynamic", broken_in_eager, with_remedy=False),
    ]
    return Group(*lists) if lists else None


Grouped = dict[str, tuple[Reason, list[str]]]


def _reason_list(title: str, grouped: Grouped, with_remedy: bool) -> Iterator[RenderableType]:
    if grouped:
        yield Text(title, "bold")
    for code, (reason, names) in grouped.items():
        head = Text.assemble((code, "yellow"), f"  {first_few(names)}")
        remedy, patch = (reason.remedy, reason.patch) if with_remedy else (None, None)
        yield Padding(Group(head, *advice(reason.message, remedy, patch)), (0, 0, 0, 2))


def most_sensitive(layers: Sequence[LayerReport]) -> RenderableType | None:
    """The layers that the output depends on most: the loss when they are int8, the gain when they stay float."""
    ranked = by_sensitivity(layers)[:SENSITIVE_SHOWN]
    if not ranked:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for layer in ranked:
        gain = layer.error.spared_gain_db if layer.error else None
        spared = "" if gain is None else minus(f"{gain:+.1f} dB if it stays float")
        table.add_row(
            "", Text(break_at_dots(layer_name(layer.name), 60)), small_share(sensitivity(layer) or 0.0), spared
        )
    title = Text("Most sensitive layers: what the output loses if only that layer is quantized", "bold")
    return Group(title, table)


def calibration(report: Report) -> RenderableType | None:
    sentences = list(calibration_words(report))
    return (
        Group(Text("Calibration", "bold"), *[Text(f"  {sentence}", "dim") for sentence in sentences])
        if sentences
        else None
    )


def findings(all_findings: Sequence[Finding]) -> RenderableType | None:
    """The findings, worst first."""
    if not all_findings:
        return None
    return Group(Text("Findings", "bold"), *map(_finding, worst_first(all_findings)))


def _finding(finding: Finding) -> RenderableType:
    mark, style = _SEVERITY[finding.severity]
    where = f"  {finding.layer}" if finding.layer else ""
    head = Text.assemble((f"{mark} {finding.code}", style), where)
    return Padding(Group(head, *advice(finding.message, finding.remedy, finding.patch)), (0, 0, 0, 2))


def advice(message: str, remedy: str | None, patch: dict[str, Any] | None) -> Iterator[RenderableType]:
    """The message, the remedy, and the patch of the job spec that applies it."""
    yield Padding(Text(message, "dim"), (0, 0, 0, 2))
    if remedy:
        yield Padding(Text(f"→ {remedy}"), (0, 0, 0, 2))
    if patch:
        yield Padding(Text(f"spec: {json.dumps(patch)}", "cyan"), (0, 0, 0, 4))


def artifacts(report: Report) -> RenderableType | None:
    if not report.artifacts:
        return None
    lines = [
        Text.assemble(
            f"  {artifact.name}  ",
            (f"{kilobytes(artifact.size)}  {artifact.kind}  ", "dim"),
            ("ran in a fresh process", "green") if artifact.verified else ("NOT verified", "red"),
        )
        for artifact in report.artifacts
    ]
    return Group(Text("Artifacts", "bold"), *lines)
