"""``GET /``: where to go from here, for a pipeline and for a person. The web pages are not part of this release."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from fewbit.rendering.html.document import document
from fewbit.rendering.html.markup import tag
from fewbit.version import VERSION
from service.http.answers import JSON, chosen_type
from service.http.openapi_operations import TEXT, documents
from service.http.report_formats import HTML, format_response

router = APIRouter(tags=["service"])


class FrontPage(BaseModel):
    """What this is, and its pages that need no key."""

    service: str = "Fewbit"
    version: str = VERSION
    docs: str = "/docs"
    openapi: str = "/openapi.json"
    health: str = "/health/ready"
    problems: str = "/problems"
    reasons: str = "/reasons"


@router.get(
    "/",
    **documents(
        "get_front_page",
        {200: FrontPage},
        ("not-acceptable",),
        secured=False,
        headers=("Vary",),
        content={JSON: {"schema": {"$ref": "#/components/schemas/FrontPage"}}, HTML: {"schema": TEXT}},
    ),
)
async def get_front_page(request: Request) -> Response:
    """Where to go from here: the pages that need no key."""
    kind = chosen_type(request, (JSON, HTML))
    return format_response(kind, _page(FrontPage()) if kind == HTML else FrontPage().model_dump_json())


def _page(front: FrontPage) -> str:
    links = front.model_dump(exclude={"service", "version"})
    rows = [tag("div", tag("dt", name), tag("dd", tag("a", path, href=path))) for name, path in links.items()]
    title = f"{front.service} {front.version}"
    said = "Quantization of PyTorch models, over HTTP: POST /models, POST /jobs, GET /jobs/{id}/report."
    return document(title, tag("main", tag("h1", title), tag("p", said), tag("dl", *rows, class_="facts"),
                               class_="prose", id="main"))  # fmt: skip
