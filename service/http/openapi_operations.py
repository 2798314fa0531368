"""What the OpenAPI document says of an operation, beside what FastAPI sees for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import Response
from pydantic import BaseModel

from fewbit.contract.problems import PROBLEMS, JobProblem, Problem
from fewbit.contract.resources import Artifact, Dataset, Delivery, Event, Job, Model, Progress, Webhook


class ModelPage(BaseModel):
    """One page of models; `next` is the `cursor` of the page behind it."""

    models: tuple[Model, ...]
    next: str | None


class DatasetPage(BaseModel):
    """One page of datasets; `next` is the `cursor` of the page behind it."""

    datasets: tuple[Dataset, ...]
    next: str | None


class JobPage(BaseModel):
    """One page of jobs; `next` is the `cursor` of the page behind it."""

    jobs: tuple[Job, ...]
    next: str | None


class ArtifactList(BaseModel):
    """The files of a job that succeeded."""

    artifacts: tuple[Artifact, ...]


class WebhookList(BaseModel):
    """Every webhook, newest first."""

    webhooks: tuple[Webhook, ...]


class DeliveryList(BaseModel):
    """What a webhook was told, newest first, at most a hundred."""

    deliveries: tuple[Delivery, ...]


class EventPage(BaseModel):
    """Events in order; `next` is the `Last-Event-ID` to go on with."""

    events: tuple[Event, ...]
    next: str


class Unfinished(BaseModel):
    """How far the job is whose report was asked for."""

    status: str
    progress: Progress | None


class EndedJob(BaseModel):
    """A job that ended without a report."""

    id: str
    status: Literal["failed", "canceled"]
    error: JobProblem | None


class JobEndedProblem(Problem):
    """The problem of a job without a report; `error` is how the job itself ended, null if it was canceled."""

    job: EndedJob
    error: JobProblem | None


def documents(
    operation_id: str,
    returns: Mapping[int, type[BaseModel] | str],
    problems: Sequence[str] = (),
    body: Mapping[str, Any] | None = None,
    headers: Sequence[str] = (),
    request_headers: Sequence[str] = (),
    secured: bool = True,
    content: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of a route. ``returns``: the model of each success, or a sentence where there is no JSON body.

    ``content``: media types of the first success other than its model's JSON.
    """
    success = {status: _success(what, headers) for status, what in returns.items()}
    first = next(iter(returns))
    if content:
        success[first]["content"] = dict(content)
    usual = ("unauthorized", "forbidden", "invalid-request", "rate-limited") if secured else ()
    extra: dict[str, Any] = {"parameters": [REQUEST_HEADERS[name] for name in request_headers]}
    if body:
        extra["requestBody"] = dict(body)
    if not secured:
        extra["security"] = []
    return {
        "operation_id": operation_id,
        "status_code": first,
        "response_class": Response,
        "response_model": None,
        "responses": success | _refusals((*usual, *problems, "service-error", "service-unavailable")),
        "openapi_extra": extra,
    }


def _success(what: type[BaseModel] | str, headers: Sequence[str]) -> dict[str, Any]:
    described = {name: RESPONSE_HEADERS[name] for name in ("X-Request-Id", *headers)}
    if isinstance(what, str):
        return {"description": what, "headers": described}
    text = (what.__doc__ or "").split("\n\n")[0].strip()
    return {"description": text, "model": what, "headers": described}


def _refusals(slugs: Sequence[str]) -> dict[int, dict[str, Any]]:
    """One entry for each status; the description lists the problems it stands for."""
    by_status: dict[int, list[str]] = {}
    for slug in dict.fromkeys(slugs):
        by_status.setdefault(PROBLEMS[slug].status, []).append(slug)
    return {status: _refusal(status, names) for status, names in sorted(by_status.items())}


def _refusal(status: int, slugs: Sequence[str]) -> dict[str, Any]:
    lines = [f"[`{slug}`](/problems/{slug}): {PROBLEMS[slug].title}" for slug in slugs]
    schema = "JobEndedProblem" if "job-failed" in slugs else "Problem"
    names = ["X-Request-Id", *_REFUSAL_HEADERS.get(status, ())]
    return {
        "description": "\n\n".join(lines),
        "headers": {name: RESPONSE_HEADERS[name] for name in names},
        "content": {"application/problem+json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


_REFUSAL_HEADERS = {
    401: ("WWW-Authenticate",),
    403: ("WWW-Authenticate",),
    429: ("Retry-After",),
    405: ("Allow",),
    409: ("Retry-After",),
    416: ("Content-Range",),
    503: ("Retry-After",),
}

TEXT = {"type": "string"}
BINARY: dict[str, Any] = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
DOWNLOAD = {"application/octet-stream": BINARY}
EVENT_STREAM = {"schema": {"type": "string", "description": "Server-sent events: `id`, `event`, `data` (JSON)."}}

UPLOAD: dict[str, Any] = {
    "required": True,
    "description": "The file's bytes as they are, or a form with one file.",
    "content": {
        "application/octet-stream": BINARY,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "contentMediaType": "application/octet-stream"}},
            }
        },
    },
}


def _header(description: str, schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"description": description, "schema": dict(schema or TEXT)}


def _parameter(name: str, description: str, schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, **_header(description, schema)}


RESPONSE_HEADERS = {
    "X-Request-Id": _header("Names this request in the service's log. The caller's own, if it sent a fit one."),
    "Location": _header("The path of what was created."),
    "Retry-After": _header("Seconds to wait before asking again.", {"type": "integer"}),
    "ETag": _header("The version of this answer, for If-None-Match and If-Range."),
    "Link": _header('The next page: `</jobs?cursor=…>; rel="next"`.'),
    "Repr-Digest": _header("SHA-256 of the whole file: `sha-256=:<base64>:` (RFC 9530)."),
    "Accept-Ranges": _header("`bytes`: parts of the file can be asked for."),
    "Content-Range": _header("Which bytes these are, and how many there are in all."),
    "Content-Disposition": _header("The name to save the file under."),
    "WWW-Authenticate": _header("`Bearer`, with the scope that is needed if the key has too little."),
    "Vary": _header("`Accept`: the same address has several faces."),
    "Allow": _header("Every method this path takes."),
}

REQUEST_HEADERS = {
    "Idempotency-Key": _parameter(
        "Idempotency-Key",
        "Makes the request safe to repeat: the same key and body get the same answer. A refusal that passes (429, 5xx, "
        "or with `Retry-After`) is not kept.",
        {"type": "string", "minLength": 1, "maxLength": 255},
    ),
    "Repr-Digest": _parameter("Repr-Digest", "SHA-256 of the file, `sha-256=:<base64>:`; checked (RFC 9530)."),
    "Prefer": _parameter("Prefer", "`wait=N`: answer only once the job has ended, or after N seconds, at most 60."),
    "If-None-Match": _parameter("If-None-Match", "An ETag: 304 if nothing has changed."),
    "If-Range": _parameter("If-Range", "An ETag: the range only if the file is still that one, else all of it."),
    "Range": _parameter("Range", "`bytes=0-99`, `bytes=100-`, `bytes=-100`."),
    "Last-Event-ID": _parameter("Last-Event-ID", "The last event seen: the stream goes on behind it."),
}
