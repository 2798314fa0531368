"""The three formats of a report or a comparison: which one a request wants, and how it is sent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request, Response

from fewbit.rendering.html.document import policy
from service.http.answers import JSON, chosen_type
from service.http.openapi_operations import TEXT

HTML, MARKDOWN = "text/html", "text/markdown"
Format = Annotated[
    Literal["json", "markdown", "html"] | None, Query(description="The face; without it, `Accept` decides.")
]
_FORMATS = {"json": JSON, "markdown": MARKDOWN, "html": HTML}


def chosen_format(request: Request, asked: str | None) -> str:
    """A media type. ``?format=`` wins over ``Accept``. Raises ``NotAcceptable``."""
    return _FORMATS[asked] if asked else chosen_type(request, (JSON, MARKDOWN, HTML))


def format_response(kind: str, body: str | bytes) -> Response:
    """Pages carry uploaders' words: they are escaped, and the policy is the second lock. Nothing may frame them."""
    headers = {"Vary": "Accept", "X-Content-Type-Options": "nosniff"}
    if kind == HTML:
        headers |= {"Content-Security-Policy": policy(), "Referrer-Policy": "no-referrer"}
    return Response(body, headers=headers, media_type=kind)


def base_of(request: Request) -> str:
    """The address that the caller reached this service under, for links that outlive the request."""
    return str(request.base_url).rstrip("/")


def content_by_format(schema: str) -> dict[str, Any]:
    """``content`` of a documented answer that comes in all three."""
    return {
        JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}},
        MARKDOWN: {"schema": TEXT},
        HTML: {"schema": TEXT},
    }
