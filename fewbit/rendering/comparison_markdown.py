"""Jobs side by side, as a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from fewbit.rendering.comparison import ComparedCell, ComparedLayer, Comparison
from fewbit.rendering.html.comparison_page import difference_words, number_words
from fewbit.rendering.markdown import MARKS, code, folded, text
from fewbit.rendering.numbers import counted, decibels
from fewbit.rendering.words import layer_name

LAYERS_SHOWN = 20
ARROWS = {"higher": "↑", "lower": "↓"}


def comparison_markdown(comparison: Comparison) -> str:
    """The summary as a table, best values bold, an arrow for the better direction; then the layers that differ."""
    jobs = comparison.jobs
    lines = [
        f"### {len(jobs)} jobs side by side",
        "",
        "| | " + " | ".join(f"{MARKS[job.verdict]} {code(job.job)}" for job in jobs) + " |",
        "|:--" + "|--:" * len(jobs) + "|",
        "| method | " + " | ".join(job.method.replace("_", " ") for job in jobs) + " |",
        *(_number(comparison, index) for index in range(len(comparison.summary))),
        "",
        *_layers(comparison),
    ]
    return "\n".join(lines) + "\n"


def _number(comparison: Comparison, index: int) -> str:
    number = comparison.summary[index]
    words = [text(number_words(number, position)) for position in range(len(number.values))]
    marked = [f"**{value}**" if position in number.best else value for position, value in enumerate(words)]
    return f"| {text(number.name)} {ARROWS[number.better]} | " + " | ".join(marked) + " |"


def _layers(comparison: Comparison) -> Iterator[str]:
    different = [layer for layer in comparison.layers if layer.differences]
    if not different:
        yield f"All jobs have the same {counted(len(comparison.layers), 'layer')}, quantized the same way."
        return
    rows = [_layer(layer) for layer in different[:LAYERS_SHOWN]]
    head = ["| layer | " + " | ".join(code(job.job) for job in comparison.jobs) + " |"]
    rule = ["|:--" * (1 + len(comparison.jobs)) + "|"]
    more = ["", f"and {len(different) - LAYERS_SHOWN} more"] if len(different) > LAYERS_SHOWN else []
    yield from folded(difference_words(comparison), [*head, *rule, *rows, *more])


def _layer(layer: ComparedLayer) -> str:
    return f"| {code(layer_name(layer.name))} | " + " | ".join(map(_cell, layer.jobs)) + " |"


def _cell(cell: ComparedCell | None) -> str:
    if cell is None:
        return "missing"
    parts = ["int8" if cell.quantized else "float", cell.reason and text(cell.reason)]
    return ", ".join([*filter(None, parts), *([decibels(cell.output_sqnr_db)] * (cell.output_sqnr_db is not None))])
