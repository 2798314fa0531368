"""A page that is one file: its style and script are inside, allowed by hash, and nothing else is allowed."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

from fewbit.rendering.html.markup import Markup, raw, tag


@cache
def _text(name: str) -> str:
    return files("fewbit.rendering.html").joinpath(name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


@cache
def policy(in_page: bool = False) -> str:
    """Content-Security-Policy (CSP 3). ``frame-ancestors`` works in the header only, not in a ``meta``."""
    rules = [
        "default-src 'none'",
        f"style-src {_hash(_text('page.css'))}",
        f"script-src {_hash(_text('page.js'))}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(rules if in_page else [*rules, "frame-ancestors 'none'"])


def document(title: str, *body: Markup) -> str:
    """The whole page, with ``body`` as its content."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy(in_page=True)),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("meta", name_="referrer", content="no-referrer"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", raw(_text("page.css"))),
    )
    script = tag("script", raw(_text("page.js")))
    return "<!doctype html>\n" + tag("html", head, tag("body", *body, script), lang="en") + "\n"
