"""The end of the page: artifacts, where the numbers come from, products, the spec."""

from __future__ import annotations

from fewbit.contract.report import Report
from fewbit.rendering.html.elements import fact_list, qualified_name, section, table
from fewbit.rendering.html.markup import Markup, tag
from fewbit.rendering.numbers import count, counted, decibels, kilobytes


def artifacts_section(report: Report) -> Markup:
    if not report.artifacts:
        return section("artifacts", "Artifacts", tag("p", "This job made no artifacts.", class_="empty"))
    rows = [
        (
            tag("code", artifact.name), artifact.kind, kilobytes(artifact.size),
            tag("span", "ran in a fresh process" if artifact.verified else "not verified",
                class_=f"mark {'pass' if artifact.verified else 'error'}"),
            decibels(artifact.output.sqnr_db) if artifact.output else "—",
            tag("code", artifact.sha256[:12], title=artifact.sha256),
        )
        for artifact in report.artifacts
    ]  # fmt: skip
    heads = ("File", "Kind", "#Size", "Verified", "#Output SQNR", "SHA-256")
    return section("artifacts", "Artifacts", table("Delivered files", heads, rows))


def record_section(report: Report) -> Markup:
    origin = report.provenance
    spent = [f"{stage} {seconds:.2f} s" for stage, seconds in origin.timings_s.items()]
    facts = fact_list({
        "Model": [report.model.id, tag("small", f" sha256 {report.model.sha256}")],
        "Versions": f"fewbit {origin.fewbit}, torch {origin.torch}, "
        + (f"torchao {origin.torchao}, " if origin.torchao else "") + f"numpy {origin.numpy}, Python {origin.python}",
        "CPU": f"{origin.cpu}, {origin.isa}, {counted(origin.threads, 'thread')}",
        "Seed": str(origin.seed),
        "Time": ", ".join(spent) or None,
        "Peak memory": kilobytes(origin.peak_memory_bytes),
    })  # fmt: skip
    spec = tag(
        "details",
        tag("summary", "The job spec, every default filled in"),
        tag("pre", tag("code", report.spec.model_dump_json(indent=2)), class_="spec", tabindex=0),
    )
    return section("record", "Where these numbers come from", facts, _products(report), spec)


def _products(report: Report) -> Markup | None:
    if not report.products:
        return None
    rows = [
        (
            qualified_name(product.name),
            product.type.rsplit(".", 1)[-1],
            product.op,
            "—" if product.macs is None else count(product.macs),
        )
        for product in report.products
    ]
    return tag(
        "details",
        tag("summary", f"Products of two activations, which have no weight to quantize: {len(rows)}"),
        table("Products of two activations", ("Product", "Type", "Operator", "#MACs a sample"), rows),
    )
