"""The top of the page: the verdict, four numbers, what to do next. Also the gates and findings sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewbit.contract.report import Finding, Report
from fewbit.rendering.html.elements import (
    Links,
    fact_list,
    patch_block,
    qualified_name,
    section,
    severity_mark,
    table,
    with_code,
    with_line_breaks,
)
from fewbit.rendering.html.markup import Markup, tag
from fewbit.rendering.numbers import small
from fewbit.rendering.words import Step, first_few, four_numbers, next_steps, verdict_sentence, worst_first

STEPS_SHOWN = 8
FINDINGS_SHOWN = 40


def head(report: Report) -> Markup:
    spec = report.spec
    about = [
        report.model.id, report.model.format, f"{spec.method} {spec.weights.dtype}",
        *([spec.target] if spec.target else []), report.job,
        *(f"{name}: {value}" for name, value in spec.labels.items()),
    ]  # fmt: skip
    return tag(
        "header",
        tag("p", *[tag("span", fact) for fact in about], class_="about"),
        tag(
            "h1",
            tag("span", report.verdict.capitalize(), class_=f"verdict {report.verdict}"),
            " ",
            tag("span", verdict_sentence(report), class_="sentence"),
        ),
        _numbers(report),
        _conclusion(report),
    )


def _numbers(report: Report) -> Markup:
    cards = [
        tag("div", tag("dt", name.capitalize()), tag("dd", number, class_="big"), tag("dd", with_line_breaks(words)))
        for name, (number, words) in four_numbers(report).items()
    ]
    return tag("dl", *cards, class_="cards")


def _conclusion(report: Report) -> Markup | None:
    conclusion = report.accuracy.conclusion if report.accuracy else ""
    return tag("p", conclusion, class_="conclusion") if conclusion else None


def next_section(report: Report, links: Links) -> Markup:
    steps = next_steps(report)
    if not steps:
        return section(
            "next", "What to do next", tag("p", "Nothing to do: no finding asks for a change.", class_="empty")
        )
    shown = tag("ol", *[_step(step, links) for step in steps[:STEPS_SHOWN]], class_="steps")
    rest = [_step(step, links) for step in steps[STEPS_SHOWN:]]
    more = tag("details", tag("summary", f"{len(rest)} more"), tag("ol", *rest, class_="steps")) if rest else None
    lead = "Each patch is a JSON merge patch for the job spec: apply it to the spec and post the job again."
    return section("next", "What to do next", shown, more, _combined_patch(report.patch), lead=lead)


def _combined_patch(patch: dict[str, Any] | None) -> Markup | None:
    """One patch for all findings, because merge patches of the same list would replace each other."""
    if patch is None:
        return None
    return tag(
        "div",
        tag("h3", "All patches in one"),
        patch_block(patch, "all findings"),
        class_="combined-patch",
    )


def _step(step: Step, links: Links) -> Markup:
    where = tag("span", first_few(step.layers), class_="where") if step.layers else None
    remedy = tag("p", with_code(step.remedy)) if step.remedy else None
    patch = patch_block(step.patch, step.code) if step.patch is not None else None
    return tag("li", tag("p", severity_mark(step.severity), links.code(step.code), where, class_="line"), remedy, patch)


def gates_section(report: Report) -> Markup:
    if not report.gates:
        nothing = "The job spec sets no gates. A gate turns a limit into a verdict that a pipeline can act on."
        return section("gates", "Gates", tag("p", nothing, class_="empty"))
    rows = [
        (
            tag("code", gate.gate),
            tag("span", "met" if gate.met else "not met", class_=f"mark {'pass' if gate.met else 'error'}"),
            "not measured" if gate.value is None else f"{gate.value + 0.0:.4g}",
            small(gate.limit),
        )
        for gate in report.gates
    ]
    return section("gates", "Gates", table("Gates of the job", ("Gate", "Result", "#Measured", "#Limit"), rows))


def findings_section(report: Report, links: Links) -> Markup:
    found = worst_first(report.findings)
    if not found:
        return section("findings", "Findings", tag("p", "No findings.", class_="empty"))
    shown, rest = _list(found[:FINDINGS_SHOWN], links), found[FINDINGS_SHOWN:]
    more = tag("details", tag("summary", f"{len(rest)} more"), _list(rest, links)) if rest else None
    return section("findings", "Findings", shown, more)


def _list(found: Sequence[Finding], links: Links) -> Markup:
    return tag("ul", *[tag("li", finding_block(finding, links)) for finding in found], class_="findings")


def finding_block(finding: Finding, links: Links, with_layer: bool = True) -> Markup:
    """One finding: what and where, the evidence, and what to do."""
    where = (
        tag("span", qualified_name(finding.layer), class_="where") if finding.layer is not None and with_layer else None
    )
    evidence = {name: evidence_words(value) for name, value in finding.evidence.items()}
    return tag(
        "div",
        tag("p", severity_mark(finding.severity), links.code(finding.code), where, class_="line"),
        tag("p", with_code(finding.message)),
        fact_list(evidence),
        tag("p", with_code(finding.remedy), class_="remedy") if finding.remedy else None,
        patch_block(finding.patch, finding.code) if finding.patch is not None else None,
        class_="finding",
    )


def evidence_words(value: object) -> str:
    """A value of ``evidence`` as text."""
    if isinstance(value, float):
        return small(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(evidence_words, value))
    return str(value)
