"""The small pieces every section of a page is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fewbit.rendering.html.markup import Child, Markup, join, tag

NAMED = {"error": "Error", "warning": "Warning", "info": "Note"}


@dataclass(frozen=True)
class Links:
    """Where the pages about reasons are: ``base`` is the service's address."""

    base: str = ""

    def reason(self, code: str) -> str:
        return f"{self.base}/reasons/{quote(code, safe='')}"

    def code(self, code: str) -> Markup:
        return tag("a", code, class_="code", href=self.reason(code))


def section(identifier: str, title: str, *children: Child, lead: str | None = None) -> Markup:
    """A part of the page, with its heading and a sentence under it."""
    heading = tag("h2", title, id=f"{identifier}-title")
    said = tag("p", lead, class_="lead") if lead else None
    return tag("section", heading, said, *children, id=identifier, aria_labelledby=f"{identifier}-title")


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[Child]], css: str = "") -> Markup:
    """A plain table, its first column the row's heading. Heads that begin with ``#`` stand over numbers."""
    kinds = ["number" if head.startswith("#") else None for head in heads]
    top = [tag("th", head.lstrip("#"), scope="col", class_=kind) for head, kind in zip(heads, kinds, strict=True)]
    body = [
        tag("tr", tag("th", row[0], scope="row"),
            *[tag("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)])
        for row in rows
    ]  # fmt: skip
    drawn = tag("table", tag("caption", caption), tag("thead", tag("tr", *top)), tag("tbody", *body))
    return tag("div", drawn, class_=f"scroll {css}".strip(), tabindex=0, role="region", aria_label=f"Table: {caption}")


def facts(pairs: Mapping[str, Child]) -> Markup | None:
    """Names and values, one under another; a value of ``None`` is left out."""
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs.items() if value is not None]
    return tag("dl", *rows, class_="facts") if rows else None


def patch_block(patch: Mapping[str, Any], what: str) -> Markup:
    """A JSON merge patch for the job spec, with a button that copies it (the script shows the button)."""
    button = tag("button", "Copy", type="button", class_="copy", aria_label=f"Copy the patch for {what}")
    return tag("div", tag("pre", tag("code", json.dumps(patch, ensure_ascii=False))), button, class_="patch")


def severity_mark(severity: str) -> Markup:
    return tag("span", NAMED[severity], class_=f"mark {severity}")


def prose(text: str) -> Markup:
    """A sentence in which `code` is written as code."""
    return join([tag("code", part) if index % 2 else part for index, part in enumerate(re.split("`([^`]+)`", text))])


def lines(text: str) -> Markup:
    """Text of several lines."""
    parts: list[Child] = []
    for index, line in enumerate(text.split("\n")):
        parts += [tag("br")] * (index > 0) + [line]
    return join(parts)


def named(name: str) -> Markup:
    """A fully-qualified name: what it ends in stands out, and it may break after dots."""
    head, dot, tail = (name or "(root)").rpartition(".")
    broken = [(part, tag("wbr")) for part in f"{head}{dot}".replace(".", ".\0").split("\0") if part]
    return join([broken, tag("b", tail)])
