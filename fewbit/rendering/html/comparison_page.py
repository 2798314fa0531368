"""Jobs side by side, as one HTML page: the summary, then layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fewbit.rendering.comparison import ComparedCell, ComparedJob, ComparedLayer, ComparedNumber, Comparison, Unit
from fewbit.rendering.html.document import document
from fewbit.rendering.html.elements import Links, qualified_name, section
from fewbit.rendering.html.markup import Child, Markup, tag
from fewbit.rendering.numbers import counted, decibels, kilobytes, milliseconds, percent, small
from fewbit.rendering.words import layer_name

DIRECTIONS = {"higher": "higher is better", "lower": "lower is better"}
WRITTEN: dict[Unit, Callable[[float], str]] = {
    "share": percent,
    "bytes": lambda value: kilobytes(int(value)),
    "ratio": lambda value: f"{value:.3f} ×",
    "dB": decibels,
    "ms": milliseconds,
    "times": lambda value: f"{value:.2f} ×",
    "score": lambda value: small(round(value, 5)),
    "count": lambda value: f"{value:.0f}",
}
VERDICTS = {"pass": "pass", "warn": "warning", "fail": "error"}


def number_words(number: ComparedNumber, position: int) -> str:
    value = number.values[position]
    return "—" if value is None else WRITTEN[number.unit](value)


def difference_words(comparison: Comparison) -> str:
    different = sum(bool(layer.differences) for layer in comparison.layers)
    verb = "differs" if different == 1 else "differ"
    return f"{different} of {counted(len(comparison.layers), 'layer')} {verb}"


def comparison_page(comparison: Comparison, base: str = "") -> str:
    jobs = comparison.jobs
    heading = tag(
        "header",
        tag("p", tag("span", counted(len(comparison.layers), "layer")), class_="about"),
        tag("h1", f"{len(jobs)} jobs side by side"),
    )
    main = tag("main", heading, _summary(comparison), _layers(comparison, Links(base)), id="main")
    title = "compare: " + ", ".join(job.job for job in jobs)
    return document(title, tag("a", "Skip to the comparison", href="#main", class_="skip"), main)


def _summary(comparison: Comparison) -> Markup:
    rows = [
        tag(
            "tr", tag("th", tag("code", number.name), tag("small", DIRECTIONS[number.better]), scope="row"),
            *[_number(number, position) for position in range(len(comparison.jobs))],
        )
        for number in comparison.summary
    ]  # fmt: skip
    element = _table("The best values are marked", "", comparison.jobs, rows, "compare", numbers=True)
    return section("summary", "Summary", element)


def _number(number: ComparedNumber, position: int) -> Markup:
    best = position in number.best
    words = number_words(number, position)
    return tag("td", tag("span", words, class_="best") if best else words, _best_mark(best), class_="number")


def _best_mark(best: bool) -> Child:
    return tag("small", "best") if best else None


def _heads(jobs: Sequence[ComparedJob], numbers: bool) -> list[Markup]:
    return [
        tag(
            "th", tag("b", job.job), tag("small", f"{job.method} · {job.model}"),
            tag("small", ", ".join(f"{name}: {value}" for name, value in job.labels.items())) if job.labels else None,
            tag("span", job.verdict, class_=f"mark {VERDICTS[job.verdict]}"),
            scope="col", class_="number" if numbers else None,
        )
        for job in jobs
    ]  # fmt: skip


def _table(
    caption: str, first: str, jobs: Sequence[ComparedJob], rows: Sequence[Markup], css: str, numbers: bool
) -> Markup:
    head = tag("thead", tag("tr", tag("th", first or "Number", scope="col"), *_heads(jobs, numbers)))
    element = tag("table", tag("caption", caption), head, tag("tbody", *rows), class_=css)
    return tag("div", element, class_="scroll", tabindex=0, role="region", aria_label=f"Table: {caption}")


def _layers(comparison: Comparison, links: Links) -> Markup:
    rows = [_layer(layer, links) for layer in comparison.layers]
    caption = f"{difference_words(comparison)} between the jobs, marked by a bar"
    only = tag(
        "p", tag("label", tag("input", type="checkbox"), " Only layers that differ"),
        data_only_differences=True, hidden=True,
    )  # fmt: skip
    element = _table(caption, "Layer", comparison.jobs, rows, "compare compare-layers", numbers=False)
    return section("layers", "Layer by layer", only, element)


def _layer(layer: ComparedLayer, links: Links) -> Markup:
    differences = tag("small", "differs: " + ", ".join(layer.differences)) if layer.differences else None
    cells = [_cell(cell, position in layer.best, links) for position, cell in enumerate(layer.jobs)]
    head = tag("th", tag("span", qualified_name(layer.name), title=layer_name(layer.name)), differences, scope="row")
    return tag("tr", head, *cells, class_="differs" if layer.differences else "same")


def _cell(cell: ComparedCell | None, best: bool, links: Links) -> Markup:
    if cell is None:
        return tag("td", tag("span", "missing", class_="quiet"), class_="other")
    chip = tag("span", "int8" if cell.quantized else "float", class_=f"chip {'int8' if cell.quantized else 'float'}")
    error = tag("span", f" {decibels(cell.output_sqnr_db)}", class_="best" if best else None)
    spent = f"{milliseconds(cell.ms)}" if cell.ms is not None else None
    ran = ", ".join(part for part in (spent, (cell.kernel or "").rsplit("::", 1)[-1]) if part)
    return tag(
        "td", chip, error if cell.output_sqnr_db is not None else None,
        tag("div", links.code(cell.reason)) if cell.reason else None,
        tag("small", cell.scheme) if cell.scheme else None, tag("small", ran) if ran else None,
    )  # fmt: skip
