"""The report as a comment on a pull request: what matters, in under 60 lines for any number of layers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from fewbit.contract.report import Finding, Report
from fewbit.contract.resources import Reason
from fewbit.rendering.html.elements import SEVERITY_NAMES, Links
from fewbit.rendering.numbers import counted, decibels, percent, small_share
from fewbit.rendering.words import (
    by_sensitivity,
    first_few,
    float_layers,
    four_numbers,
    gate_words,
    layer_name,
    sensitivity,
    verdict_sentence,
    worst_first,
)

FINDINGS_SHOWN = 5
GATES_SHOWN = 8
REASONS_SHOWN = 5
SENSITIVE_SHOWN = 5
LONGEST = 240  # characters of one text of the report; the HTML page has all of it
LONGEST_NAME = 80
LONGEST_PATCH = 300
MARKS = {"pass": "✅", "warn": "⚠️", "fail": "❌", "error": "❌", "warning": "⚠️", "info": "ℹ️"}
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")


def report_markdown(report: Report, base: str = "") -> str:
    """The whole comment. ``base``: the address of the service whose ``/reasons/{code}`` it links to."""
    links = Links(base)
    blocks = [_head(report), _numbers(report), _gates(report), _findings(report, links), _float(report, links),
              _sensitive(report), _foot(report)]  # fmt: skip
    return "\n\n".join("\n".join(block) for block in map(list, blocks) if block) + "\n"


def text(words: str, longest: int = LONGEST) -> str:
    """``words`` on one line, escaped so that GitHub shows exactly them: no markup, no HTML, no mentions, no links.

    ``@``, ``://`` and ``www`` get a zero-width space, because GitHub links them even when they are escaped.
    """
    line = " ".join(words.split())
    cut = line if len(line) <= longest else line[: longest - 1] + "…"
    escaped = cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    linked = _MARKUP.sub(r"\\\1", escaped).replace("@", "@\u200b").replace("://", ":\u200b//")
    return re.sub(r"(?i)www\.", "www\u200b.", linked)


def code(words: str, longest: int = LONGEST_NAME) -> str:
    """``words`` as inline code, with a fence longer than any in it. Bars are escaped: in a table they end a cell."""
    line = " ".join(words.split()) or " "
    cut = line if len(line) <= longest else line[: longest - 1] + "…"
    fence = "`" * (1 + max(map(len, re.findall("`+", cut)), default=0))
    space = " " if cut.startswith("`") or cut.endswith("`") else ""
    return f"{fence}{space}{cut}{space}{fence}".replace("|", "\\|")


def link(slug: str, links: Links) -> str:
    return f"[{text(slug)}](<{links.reason(slug)}>)" if links.base else code(slug)


def block(language: str, body: str) -> list[str]:
    """A code block whose fence the body cannot close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return [f"{fence}{language}", body, fence]


def folded(summary: str, lines: Sequence[str]) -> list[str]:
    return ["<details>", f"<summary>{summary}</summary>", "", *lines, "", "</details>"]


def _head(report: Report) -> Iterator[str]:
    yield f"### {MARKS[report.verdict]} {report.verdict.capitalize()}: {text(verdict_sentence(report))}"
    yield ""
    spec = report.spec
    yield f"{code(report.model.id)} · {spec.method} {spec.weights.dtype} · {code(report.job)}"


def _numbers(report: Report) -> Iterator[str]:
    yield "| | | |"
    yield "|:--|--:|:--|"
    for name, (number, words) in four_numbers(report).items():
        yield f"| {name} | **{text(number)}** | {text(', '.join(words.splitlines()))} |"
    if report.accuracy and report.accuracy.conclusion:
        yield ""
        yield text(report.accuracy.conclusion)


def _gates(report: Report) -> Iterator[str]:
    ordered = sorted(report.gates, key=lambda gate: gate.met)
    if ordered:
        shown = [f"{MARKS['pass' if gate.met else 'fail']} {text(gate_words(gate))}" for gate in ordered[:GATES_SHOWN]]
        more = [f"and {len(ordered) - GATES_SHOWN} more"] * (len(ordered) > GATES_SHOWN)
        yield "**Gates:** " + " · ".join([*shown, *more])


def _findings(report: Report, links: Links) -> Iterator[str]:
    found = worst_first(report.findings)
    if not found:
        return
    yield "**Findings**"
    yield ""
    yield from (_finding(finding, links) for finding in found[:FINDINGS_SHOWN])
    if len(found) > FINDINGS_SHOWN:
        yield f"- and {len(found) - FINDINGS_SHOWN} more"
    patches = [
        finding.patch for finding in found[:FINDINGS_SHOWN] if finding.patch is not None and finding.severity != "info"
    ]
    if report.patch is not None:
        patches = [report.patch]  # one patch for all findings
    if patches:
        yield ""
        yield from folded("Patches for the job spec", [line for patch in patches[:2] for line in _patch(patch)])


def _finding(finding: Finding, links: Links) -> str:
    where = f" {code(layer_name(finding.layer))}" if finding.layer is not None else ""
    heading = f"- {MARKS[finding.severity]} {SEVERITY_NAMES[finding.severity]} {link(finding.code, links)}{where}: "
    return heading + text(finding.message, 160)


def _patch(patch: dict[str, Any]) -> list[str]:
    written = json.dumps(patch, ensure_ascii=False)
    return block("json", written) if len(written) <= LONGEST_PATCH else ["The patch is long; the report has it."]


def _float(report: Report, links: Links) -> Iterator[str]:
    reasons = float_layers(report.layers)
    if not reasons:
        return
    number = sum(len(names) for _, names in reasons.values())
    lines = [line for item in list(reasons.items())[:REASONS_SHOWN] for line in _reason(*item, links)]
    if len(reasons) > REASONS_SHOWN:
        lines.append(f"- and {counted(len(reasons) - REASONS_SHOWN, 'more reason')}")
    yield from folded(f"{number} of {counted(len(report.layers), 'layer')} stayed float", lines)


def _reason(slug: str, held: tuple[Reason, list[str]], links: Links) -> Iterator[str]:
    reason, names = held
    remedy = f" → {text(reason.remedy, 120)}" if reason.remedy else ""
    patch = f" Patch: {code(json.dumps(reason.patch, ensure_ascii=False), 160)}" if reason.patch is not None else ""
    yield f"- {link(slug, links)} ({len(names)}): {code(first_few(names))} {text(reason.message, 120)}{remedy}{patch}"


def _sensitive(report: Report) -> Iterator[str]:
    ranked = by_sensitivity(report.layers)[:SENSITIVE_SHOWN]
    if not ranked:
        return
    lines = ["| layer | loss | own SQNR | gain if float |", "|:--|--:|--:|--:|"]
    for layer in ranked:
        error = layer.error
        own, gain = (error.output_sqnr_db, error.spared_gain_db) if error else (None, None)
        loss = small_share(sensitivity(layer) or 0.0)
        lines.append(f"| {code(layer_name(layer.name))} | {text(loss)} | {decibels(own)} | {decibels(gain)} |")
    yield from folded("The most sensitive layers", lines)


def _foot(report: Report) -> Iterator[str]:
    origin = report.provenance
    share = f"{percent(report.coverage.parameters)} of the parameters are int8"
    threads = counted(origin.threads, "thread")
    conditions = f"fewbit {origin.fewbit}, torch {origin.torch}, {origin.isa}, {threads}, seed {origin.seed}"
    yield f"<sub>{text(share)}. {text(conditions)}</sub>"
