"""A report as a person reads it: the verdict, four numbers, the layers, and what to do next. Fits 100 columns."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fewbit.metrics import is_lower_better, is_share
from fewbit.report import Accuracy, Finding, Gate, Latency, LayerReport, Metric, Report
from fewbit.resources import Reason

_VERDICT = {"pass": "bold white on green4", "warn": "bold black on yellow3", "fail": "bold white on red3"}
_SEVERITY = {"info": ("i", "cyan"), "warning": ("!", "yellow"), "error": ("x", "red")}


def terminal() -> Console:
    """Standard output; 100 columns wide when nobody says how wide it is."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else 100)


def show(report: Report, console: Console, title: str | None = None) -> None:
    """Print the whole report."""
    console.print(render(report, title))


def render(report: Report, title: str | None = None) -> Group:
    """The whole report, top to bottom as it is read."""
    return Group(*_spaced(
        verdict_line(report, title),
        numbers(report),
        metrics(report.accuracy),
        gates(report.gates),
        layer_table(report.layers),
        reasons(report.layers),
        findings(report.findings),
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
    """Coverage, size, accuracy, speed: one panel each, the number first, then what it stands for."""
    panels = {
        "coverage": coverage_words(report),
        "size": size_words(report),
        "accuracy": accuracy_words(report.accuracy),
        "speed": speed_words(report.latency),
    }
    return Columns([_panel(title, *words) for title, words in panels.items()], padding=(0, 1))


def _panel(title: str, number: str, words: str) -> Panel:
    return Panel(Text.assemble((number, "bold"), ("\n" + words, "dim")), title=title, box=ROUNDED, width=24, height=7)


Words = tuple[str, str]


def coverage_words(report: Report) -> Words:
    coverage = report.coverage
    count = f"of parameters int8\n{coverage.layers.quantized} of {coverage.layers.total} layers"
    return percent(coverage.parameters), f"{count}\n{percent(coverage.macs)} of the arithmetic"


def size_words(report: Report) -> Words:
    size = report.size
    if size.after is None or size.ratio is None:
        return "—", f"{kilobytes(size.before)} before\nthis job made no artifact"
    return f"{size.ratio:.2f} ×", f"{kilobytes(size.before)} before\n{kilobytes(size.after)} after"


def accuracy_words(accuracy: Accuracy | None) -> Words:
    """The first metric, if there are labels; else how close the outputs are."""
    if accuracy is None:
        return "—", "not measured"
    if accuracy.labelled and accuracy.metrics:
        metric = accuracy.metrics[0]
        same = accuracy.output.top1_agreement == 1 and not accuracy.flips
        change = (
            f"no prediction changed\nin {accuracy.samples} samples" if same else drop_words(metric, accuracy.samples)
        )
        return measure(metric, metric.after), f"{measure(metric, metric.before)} before\n{change}"
    data = "synthetic inputs: weak" if accuracy.kind == "synthetic" else "no labels"
    return f"{accuracy.output.sqnr_db:.1f} dB", f"output SQNR\n{accuracy.samples} samples\n{data}"


def drop_words(metric: Metric, samples: int) -> str:
    """What the difference means: a point estimate alone says little on a few hundred samples."""
    change = difference(metric, metric.delta) + (" points" if is_share(metric.name) else "")
    if metric.ci95 is None:
        return f"{change}\n{samples} samples"
    low, high = metric.ci95
    if low <= 0 <= high:
        return f"{change}: not distinguishable from zero with {samples} samples"
    word = "loss" if (metric.delta > 0) == is_lower_better(metric.name) else "gain"
    return f"{change}: a real {word}, {difference(metric, low)} to {difference(metric, high)} (95 %)"


def metrics(accuracy: Accuracy | None) -> RenderableType | None:
    """A line a metric, where there is more than the one in the panel."""
    if accuracy is None or len(accuracy.metrics) < 2:
        return None
    lines = [
        Text(f"  {each.name}  {measure(each, each.before)} → {measure(each, each.after)}  {said}")
        for each, said in ((each, each.note.partition(";")[0]) for each in accuracy.metrics)
    ]
    return Group(Text("Metrics", "bold"), *lines)


def measure(metric: Metric, value: float) -> str:
    return percent(value, 2) if is_share(metric.name) else f"{value:.4g}"


def difference(metric: Metric, value: float) -> str:
    return points(value) if is_share(metric.name) else f"{value:+.3g}".replace("-", "−")


def speed_words(latency: Latency | None) -> Words:
    """The fastest artifact against the float model."""
    if latency is None or not latency.artifacts:
        return "—", "not measured"
    kind, best = max(latency.artifacts.items(), key=lambda item: item[1].speedup)
    times = f"{milliseconds(latency.before_ms.p50)} before\n{milliseconds(best.p50)} as {kind}"
    slower = " (slower)" if best.speedup < 1 else ""
    return f"{best.speedup:.2f} ×{slower}", f"{times}\nbatch {latency.batch}, {latency.threads} threads"


def gates(all_gates: Sequence[Gate]) -> Text | None:
    """One line for each limit of the spec."""
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
    """A row a layer. Kernels have long names and repeat, so that they are numbered; the last column is what one gets
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
            Text(at_dots(layer.name or "(root)", 36)),
            Text(layer.type.rsplit(".", 1)[-1]),
            Text("int8", "green") if layer.quantized else Text("float", "yellow"),
            Text(f"({kernels.index(layer.executed) + 1})" if layer.executed else "none", "dim"),
            sqnr(layer),
            eager(layer),
        )
    legend = [Text(f"  ({number}) {kernel}", "dim") for number, kernel in enumerate(kernels, 1)]
    return Group(table, Text("Kernels that ran, from the profiler", "bold"), *legend)


def at_dots(name: str, width: int) -> str:
    """A long fully-qualified name on several lines, broken after a dot where one is near."""
    if len(name) <= width:
        return name
    cut = name.rfind(".", 0, width) + 1 or width
    return name[:cut] + "\n" + at_dots(name[cut:], width)


def sqnr(layer: LayerReport) -> Text:
    value = layer.error.output_sqnr_db if layer.error else None
    if value is None:
        return Text("—", "dim")
    return Text(f"{value:.1f} dB", "" if value >= 20 else "red")


def eager(layer: LayerReport) -> Text:
    """``int8`` with a code is worse than float: the layer is swapped, and the model fails or answers wrongly."""
    code = layer.eager.reason.code if layer.eager.reason else None
    if layer.eager.quantized:
        return Text.assemble(("int8", "red"), f": {code}") if code else Text("int8", "green")
    return Text.assemble(("float", "yellow"), f": {code or 'no reason known'}")


def reasons(layers: Sequence[LayerReport]) -> RenderableType | None:
    """Each reason once, with the layers it holds for: why they are float here, then what eager would have done."""
    here = _by_reason([(layer.name, layer.reason) for layer in layers if not layer.quantized])
    verdicts = [(layer.name, layer.eager) for layer in layers if layer.quantized]
    there = _by_reason([(name, verdict.reason) for name, verdict in verdicts if not verdict.quantized])
    broken = _by_reason([(name, verdict.reason) for name, verdict in verdicts if verdict.quantized])
    lists = [
        *_reason_list("Why layers stayed float", here, with_remedy=True),
        *_reason_list("Int8 here, float with plain quantize_dynamic, because", there, with_remedy=False),
        *_reason_list("Swapped by plain quantize_dynamic too, but", broken, with_remedy=False),
    ]
    return Group(*lists) if lists else None


Grouped = dict[str, tuple[Reason, list[str]]]


def _by_reason(pairs: Sequence[tuple[str, Reason | None]]) -> Grouped:
    names: dict[str, list[str]] = defaultdict(list)
    first: dict[str, Reason] = {}
    for name, reason in pairs:
        if reason:
            names[reason.code].append(name)
            first.setdefault(reason.code, reason)
    return {code: (reason, names[code]) for code, reason in first.items()}


def _reason_list(title: str, grouped: Grouped, with_remedy: bool) -> Iterator[RenderableType]:
    if grouped:
        yield Text(title, "bold")
    for code, (reason, names) in grouped.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        head = Text.assemble((code, "yellow"), f"  {', '.join(names[:3])}{more}")
        remedy, patch = (reason.remedy, reason.patch) if with_remedy else (None, None)
        yield Padding(Group(head, *advice(reason.message, remedy, patch)), (0, 0, 0, 2))


def findings(all_findings: Sequence[Finding]) -> RenderableType | None:
    """What to know or to act on, worst first."""
    if not all_findings:
        return None
    ordered = sorted(all_findings, key=lambda finding: ("error", "warning", "info").index(finding.severity))
    return Group(Text("Findings", "bold"), *map(_finding, ordered))


def _finding(finding: Finding) -> RenderableType:
    mark, style = _SEVERITY[finding.severity]
    where = f"  {finding.layer}" if finding.layer else ""
    head = Text.assemble((f"{mark} {finding.code}", style), where)
    return Padding(Group(head, *advice(finding.message, finding.remedy, finding.patch)), (0, 0, 0, 2))


def advice(message: str, remedy: str | None, patch: dict[str, Any] | None) -> Iterator[RenderableType]:
    """What it is, what to do, and the change to the job spec that does it."""
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


# Numbers as people write them


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def points(share: float) -> str:
    """A difference of shares in percentage points, with a true minus sign."""
    return f"{100 * share:+.2f}".replace("-", "−") if round(100 * share, 2) else "±0.00"


def kilobytes(size: int) -> str:
    """Decimal units, as disks and downloads are labelled."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def milliseconds(value: float) -> str:
    return f"{value:.3g} ms"
