"""The layer table: one row per layer, and below it the folded detail of that layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fewbit.contract.report import Finding, LayerReport, Report
from fewbit.rendering.html.charts import bar
from fewbit.rendering.html.elements import Links, qualified_name, section, severity_mark
from fewbit.rendering.html.layer_detail import detail
from fewbit.rendering.html.markup import Child, Markup, tag
from fewbit.rendering.numbers import count, counted, decibels, percent, shape, small_share
from fewbit.rendering.words import SEVERITIES, by_sensitivity, converted_words, layer_name, requested_words, sensitivity

LOW_SQNR_DB = 20.0


@dataclass(frozen=True)
class Column:
    """``css`` also says from which window width the column is shown."""

    title: str
    css: str
    about: str


COLUMNS = (
    Column("Layer", "name", "The fully-qualified name, the type and the shape of the weight"),
    Column("Requested", "from-s", "What the job spec asks for"),
    Column("Converted", "", "What the graph holds"),
    Column("Executed", "ran", "The kernel the profiler saw, and its time for one batch"),
    Column("Time", "number from-m", "Share of all layers' time"),
    Column("Params", "number from-m", "Parameters"),
    Column("SQNR", "number", "The layer's own output against float, on the same input"),
    Column("Accum.", "number from-m", "Its output in the quantized model against the float model"),
    Column("Sensitivity", "number from-s", "What the model loses if only this layer is quantized"),
    Column("Spared", "number from-l", "What the model's output SQNR gains if only this layer stays float"),
    Column("Plain", "from-l", "What torch.ao.quantization.quantize_dynamic would do with it"),
    Column("Findings", "from-s", "The findings about this layer"),
)


def layers_section(report: Report, links: Links) -> Markup:
    if not report.layers:
        return section("layers", "Layers", tag("p", "The model has no layer with a constant operand.", class_="empty"))
    found = _by_layer(report.findings)
    largest = max((sensitivity(layer) or 0.0 for layer in by_sensitivity(report.layers)), default=0.0)
    rows = [_pair(layer, found.get(layer.name, ()), largest, links) for layer in report.layers]
    heads = [tag("th", column.title, scope="col", class_=column.css or None, title=column.about) for column in COLUMNS]
    element = tag(
        "table",
        tag("caption", f"{counted(len(report.layers), 'layer')}, in the order they run. Open a layer for its details."),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *rows),
        class_="layers",
    )
    return section("layers", "Layers", _controls(report, found), element)


def _controls(report: Report, found: Mapping[str, Sequence[Finding]]) -> Markup:
    """The controls of the script, hidden without it."""
    quantized = sum(layer.quantized for layer in report.layers)
    choices = {
        "all": f"All {len(report.layers)}", "int8": f"Quantized {quantized}",
        "float": f"Float {len(report.layers) - quantized}",
        "found": f"With findings {sum(bool(found.get(layer.name)) for layer in report.layers)}",
    }  # fmt: skip
    buttons = [
        tag("button", text, type="button", data_show=name, aria_pressed="true" if name == "all" else "false")
        for name, text in choices.items()
    ]
    search = tag("input", type="search", id="filter", placeholder="name, type, kernel, reason", autocomplete="off")
    return tag(
        "div",
        tag("label", tag("span", "Filter layers"), search),
        tag("div", *buttons, role="group", aria_label="Show"),
        tag("p", "", id="shown", role="status"),
        class_="controls", hidden=True,
    )  # fmt: skip


def _by_layer(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.layer is not None:
            found.setdefault(finding.layer, []).append(finding)
    return found


def _pair(layer: LayerReport, found: Sequence[Finding], largest: float, links: Links) -> Markup:
    cells = [
        _cell(column, child, key)
        for column, (child, key) in zip(COLUMNS[1:], _cells(layer, found, largest, links), strict=True)
    ]
    row = tag(
        "tr", _name(layer), *cells, class_="layer", data_int8=layer.quantized, data_found=bool(found),
    )  # fmt: skip
    css = "detail printed" if found or not layer.quantized else "detail"
    return Markup(row + tag("tr", tag("td", detail(layer, found, links), colspan=len(COLUMNS)), class_=css))


def _name(layer: LayerReport) -> Markup:
    """The row's heading, which opens the row below it; the style does that alone, with ``:has(details[open])``."""
    kind = tag("small", f"{layer.type.rsplit('.', 1)[-1]} · {shape(layer.shape)}")
    return tag(
        "th", tag("details", tag("summary", tag("span", qualified_name(layer.name), kind))), scope="row", class_="name",
        data_v=layer_name(layer.name),
    )  # fmt: skip


Cell = tuple[Child, float | str | None]  # the content, and the sort key if it is not the content


def _cells(layer: LayerReport, found: Sequence[Finding], largest: float, links: Links) -> list[Cell]:
    error, run = layer.error, layer.execution
    own = error.output_sqnr_db if error else None
    accumulated = error.accumulated_sqnr_db if error else None
    spared = error.spared_gain_db if error else None
    return [
        (_chip(requested_words(layer.requested)), None),
        ([_chip(converted_words(layer)), links.code(layer.reason.code) if layer.reason else None], None),
        (_executed(layer), run.ms if run else None),
        (percent(run.share) if run else "—", run.share if run else None),
        (count(layer.parameters), layer.parameters),
        (_sqnr(own), own),
        (_sqnr(accumulated), accumulated),
        (_sensitivity(sensitivity(layer), largest), sensitivity(layer)),
        (decibels(spared), spared),
        (_plain(layer, links), None),
        (_codes(found, links), float(len(found))),
    ]


def _cell(column: Column, child: Child, key: float | str | None) -> Markup:
    return tag("td", child, class_=column.css or None, data_v=f"{key:.6g}" if isinstance(key, float | int) else key)


def _chip(words: str) -> Markup:
    kind = "float" if words == "float" else ("" if words == "—" else "int8")
    return tag("span", words, class_=f"chip {kind}".strip())


def _executed(layer: LayerReport) -> Child:
    kernel = layer.executed or (layer.execution.kernel if layer.execution else None)
    if kernel is None:
        return tag("span", "not run", class_="quiet")
    spent = f"{layer.execution.ms:.3g} ms" if layer.execution else None
    return [tag("span", spent) if spent else None, tag("small", kernel.rsplit("::", 1)[-1], title=kernel)]


def _sqnr(value: float | None) -> Markup:
    return tag("span", decibels(value), class_="low" if value is not None and value < LOW_SQNR_DB else None)


def _sensitivity(value: float | None, largest: float) -> Child:
    if value is None:
        return "—"
    return [small_share(value), bar(value / largest if largest else 0.0, "of the most sensitive layer", "accent")]


def _plain(layer: LayerReport, links: Links) -> Child:
    """``int8`` with a code is worse than float: the layer is swapped, and then the model fails or answers wrongly."""
    reason, swapped = layer.eager.reason, layer.eager.quantized
    kind = "broken" if swapped and reason else ("int8" if swapped else "float")
    chip = tag("span", "int8" if swapped else "float", class_=f"chip {kind}")
    return [chip, links.code(reason.code) if reason else None]


def _codes(found: Sequence[Finding], links: Links) -> Child:
    ordered = sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
    return [tag("div", severity_mark(finding.severity), " ", links.code(finding.code)) for finding in ordered]
