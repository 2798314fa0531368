"""``/problems/{slug}``: what each problem means and what to do. An error's ``type`` leads here."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.responses import HTMLResponse

from fewbit.contract.problems import PROBLEMS, ProblemKind
from service.http.answers import JSON, chosen_type, json_response
from service.http.openapi_operations import TEXT, documents
from service.http.problems import NotFound

router = APIRouter(tags=["service"])
HTML = "text/html"


class ProblemPage(BaseModel):
    """What a problem means, and what to do about it."""

    type: str
    title: str
    status: int
    remedy: str
    retryable: bool


class ProblemPages(BaseModel):
    """Every problem there is."""

    problems: tuple[ProblemPage, ...]


@router.get(
    "/problems",
    **documents(
        "list_problems",
        {200: ProblemPages},
        ("not-acceptable",),
        secured=False,
        content={JSON: {"schema": {"$ref": "#/components/schemas/ProblemPages"}}, HTML: {"schema": TEXT}},
    ),
)
async def list_problems(request: Request) -> Response:
    """Every problem an answer can have, and every one a job can end in."""
    if chosen_type(request, (JSON, HTML)) == HTML:
        rows = (
            f'<dt><a href="/problems/{kind.slug}">{kind.slug}</a></dt><dd>{escape(kind.title)}</dd>'
            for kind in all_kinds()
        )
        return _html("Problems", f"<dl>{''.join(rows)}</dl>")
    return json_response(ProblemPages(problems=tuple(map(_page, all_kinds()))).model_dump_json().encode())


@router.get(
    "/problems/{slug}",
    **documents(
        "get_problem",
        {200: ProblemPage},
        ("not-found", "not-acceptable"),
        secured=False,
        content={JSON: {"schema": {"$ref": "#/components/schemas/ProblemPage"}}, HTML: {"schema": TEXT}},
    ),
)
async def get_problem(request: Request, slug: str) -> Response:
    """One problem: what it means, and what to do."""
    kind = PROBLEMS.get(slug)
    if kind is None:
        raise NotFound(f"There is no problem {slug}. /problems lists them all.")
    if chosen_type(request, (JSON, HTML)) == HTML:
        again = "The same request may succeed later." if kind.retryable else "The same request will fail again."
        text = f"<p>{escape(kind.title)} (status {kind.status}).</p><p>{escape(kind.remedy)}</p><p>{again}</p>"
        return _html(kind.slug, text + '<p><a href="/problems">All problems</a></p>')
    return json_response(_page(kind).model_dump_json().encode())


def all_kinds() -> list[ProblemKind]:
    return list(PROBLEMS.values())


def _page(kind: ProblemKind) -> ProblemPage:
    return ProblemPage(
        type=f"/problems/{kind.slug}",
        title=kind.title,
        status=kind.status,
        remedy=kind.remedy,
        retryable=kind.retryable,
    )


def _html(title: str, body: str) -> HTMLResponse:
    style = (
        "body{font:16px/1.5 system-ui;max-width:44rem;margin:3rem auto;padding:0 1rem}dt{margin-top:.7rem}dd{margin:0}"
    )
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style>'
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{escape(title)}</h1>{body}</body></html>',
        headers={"Content-Security-Policy": policy},
    )
