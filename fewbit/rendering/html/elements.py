"""Elements that the sections of a page share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fewbit.rendering.html.markup import Child, Markup, join, tag

SEVERITY_NAMES = {"error": "Error", "warning": "Warning", "info": "Note"}


@dataclass(frozen=True)
class Links:
    """Links to the pages about reasons. ``base`` is the service's address."""

    base: str = ""

    def reason(self, code: str) -> str:
        return f"{self.base}/reasons/{quote(code, safe='')}"

    def code(self, code: str) -> Markup:
        return tag("a", code, class_="code", href=self.reason(code))


def section(identifier: str, title: str, *children: Child, lead: str | None = None) -> Markup:
    """A section of the page: its heading, a sentence under it, and its content."""
    heading = tag("h2", title, id=f"{identifier}-title")
    lead_line = tag("p", lead, class_="lead") if lead else None
    return tag("section", heading, lead_line, *children, id=identifier, aria_labelledby=f"{identifier}-title")


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[Child]], css: str = "") -> Markup:
    """A plain table; the first column holds the row headings. ``#`` before a head marks a column of numbers."""
    kinds = ["number" if head.startswith("#") else None for head in heads]
    top = [tag("th", head.lstrip("#"), scope="col", class_=kind) for head, kind in zip(heads, kinds, strict=True)]
    body = [
        tag("tr", tag("th", row[0], scope="row"),
            *[tag("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)])
        for row in rows
    ]  # fmt: skip
    element = tag("table", tag("caption", caption), tag("thead", tag("tr", *top)), tag("tbody", *body))
    return tag(
        "div", element, class_=f"scroll {css}".strip(), tabindex=0, role="region", aria_label=f"Table: {caption}"
    )


def fact_list(pairs: Mapping[str, Child]) -> Markup | None:
    """Names and values, one below the other; values of ``None`` are left out."""
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs.items() if value is not None]
    return tag("dl", *rows, class_="facts") if rows else None


def patch_block(patch: Mapping[str, Any], what: str) -> Markup:
    """A JSON merge patch for the job spec, with a button that copies it (the script shows the button)."""
    button = tag("button", "Copy", type="button", class_="copy", aria_label=f"Copy the patch for {what}")
    return tag("div", tag("pre", tag("code", json.dumps(patch, ensure_ascii=False))), button, class_="patch")


def severity_mark(severity: str) -> Markup:
    return tag("span", SEVERITY_NAMES[severity], class_=f"mark {severity}")


def with_code(text: str) -> Markup:
    """Text whose `quoted` parts become code elements."""
    return join([tag("code", part) if index % 2 else part for index, part in enumerate(re.split("`([^`]+)`", text))])


def with_line_breaks(text: str) -> Markup:
    """Text whose newlines become line breaks."""
    parts: list[Child] = []
    for index, line in enumerate(text.split("\n")):
        parts += [tag("br")] * (index > 0) + [line]
    return join(parts)


def qualified_name(name: str) -> Markup:
    """A fully-qualified name: its last part stands out, and lines may break after dots."""
    head, dot, tail = (name or "(root)").rpartition(".")
    broken = [(part, tag("wbr")) for part in f"{head}{dot}".replace(".", ".\0").split("\0") if part]
    return join([broken, tag("b", tail)])
