"""The report as one self-contained HTML page: it needs no network, no account, no other file."""

from __future__ import annotations

from fewbit.contract.report import Report
from fewbit.rendering.html.curves import calibration_section, depth_section, sensitivity_section
from fewbit.rendering.html.document import document
from fewbit.rendering.html.elements import Links
from fewbit.rendering.html.layer_table import layers_section
from fewbit.rendering.html.markup import Markup, tag
from fewbit.rendering.html.measured import coverage_section, measured_section
from fewbit.rendering.html.provenance import artifacts_section, record_section
from fewbit.rendering.html.summary import findings_section, gates_section, head, next_section

SECTION_TITLES = {
    "next": "Next", "gates": "Gates", "layers": "Layers", "coverage": "Coverage", "sensitivity": "Sensitivity",
    "depth": "Depth", "measured": "Before and after", "findings": "Findings", "calibration": "Calibration",
    "artifacts": "Artifacts",
    "record": "Record",
}  # fmt: skip


def report_page(report: Report, base: str = "") -> str:
    """The whole page. ``base``: the address of the service whose ``/reasons/{code}`` it links to."""
    links = Links(base)
    sections = [
        next_section(report, links),
        gates_section(report),
        layers_section(report, links),
        coverage_section(report, links),
        sensitivity_section(report),
        depth_section(report),
        measured_section(report),
        findings_section(report, links),
        calibration_section(report),
        artifacts_section(report),
        record_section(report),
    ]
    main = tag("main", head(report), _contents(report), *filter(None, sections), id="main")
    title = f"{report.verdict}: {report.model.id}, {report.spec.method} ({report.job})"
    return document(title, tag("a", "Skip to the report", href="#main", class_="skip"), main)


def _contents(report: Report) -> Markup:
    titles = {name: title for name, title in SECTION_TITLES.items() if name != "calibration" or report.calibration}
    return tag(
        "nav",
        tag("ul", *[tag("li", tag("a", title, href=f"#{name}")) for name, title in titles.items()]),
        aria_label="Parts of the report",
    )
