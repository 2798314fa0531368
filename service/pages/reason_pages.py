"""``/reasons/{code}``: why a layer is as it is, from the pages in ``docs/reasons``. Reports link here."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from markdown_it import MarkdownIt

from fewbit.rendering.html.document import document
from fewbit.rendering.html.markup import raw, tag
from service.http.answers import chosen_type
from service.http.openapi_operations import TEXT, documents
from service.http.problems import NotFound
from service.http.report_formats import HTML, MARKDOWN, format_response

router = APIRouter(tags=["service"])
FOLDER = Path(__file__).parents[2] / "docs" / "reasons"
_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")
_PAGES = {HTML: {"schema": TEXT}, MARKDOWN: {"schema": TEXT}}


@router.get(
    "/reasons",
    **documents(
        "list_reasons", {200: "Every reason there is a page for."}, ("not-acceptable",), secured=False,
        headers=("Vary",), content=_PAGES,
    ),
)  # fmt: skip
async def list_reasons(request: Request) -> Response:
    """Every reason code a report can carry, for layers that stayed float and for findings."""
    kind = chosen_type(request, (HTML, MARKDOWN))
    titles = titles_in(FOLDER)
    if kind == HTML:
        return format_response(kind, index_page(titles))
    lines = [f"- [`{code}`](/reasons/{code}): {title}" for code, title in titles.items()]
    return format_response(kind, "\n".join(["# Reasons", "", *lines]) + "\n")


@router.get(
    "/reasons/{code}",
    **documents(
        "get_reason", {200: "What the code means, how to see it, and what to do."}, ("not-found", "not-acceptable"),
        secured=False, headers=("Vary",), content=_PAGES,
    ),
)  # fmt: skip
async def get_reason(request: Request, code: str) -> Response:
    """One reason: what happens, how to see it in a model, what to do."""
    kind = chosen_type(request, (HTML, MARKDOWN))
    text = pages_in(FOLDER).get(code)
    if text is None:
        raise NotFound(f"There is no page about the reason {code}. /reasons lists all there are.")
    return format_response(kind, reason_page(code, text) if kind == HTML else text)


@cache
def pages_in(folder: Path) -> dict[str, str]:
    """Each code with its page. Read once; what is asked for never becomes a path. Empty where none are installed."""
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}
    return {code: text for code, text in found.items() if _CODE.match(code)}


def titles_in(folder: Path) -> dict[str, str]:
    """Each code with the title of its page: the first line is ``# code: Title``."""
    return {
        code: text.partition("\n")[0].lstrip("# ").removeprefix(f"{code}:").strip()
        for code, text in pages_in(folder).items()
    }


def reason_page(code: str, text: str) -> str:
    """The page as HTML. HTML in the text is shown, not run: markdown-it's ``html`` is off, and it checks links."""
    written = raw(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))
    back = tag("p", tag("a", "All reasons", href="/reasons"), class_="about")
    return document(code, tag("main", back, written, class_="prose", id="main"))


def index_page(titles: dict[str, str]) -> str:
    rows = [
        tag("div", tag("dt", tag("a", code, class_="code", href=f"/reasons/{code}")), tag("dd", title))
        for code, title in titles.items()
    ]
    said = "Why a layer is as it is: the codes of a report's reasons and findings."
    return document("Reasons", tag("main", tag("h1", "Reasons"), tag("p", said), tag("dl", *rows, class_="facts"),
                                   class_="prose", id="main"))  # fmt: skip
