"""``/jobs``: post, watch, cancel and delete them. ``validation`` decides which jobs can work."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from fewbit.contract.problems import FieldError
from fewbit.contract.report import Report
from fewbit.contract.resources import Job, JobStatus
from fewbit.rendering.html.report_page import report_page
from fewbit.rendering.markdown import report_markdown
from service.context import ServiceContext, context_of
from service.delivery import deliver
from service.http.answers import (
    JSON,
    LONGEST_PAGE,
    chosen_type,
    decode_cursor,
    json_response,
    no_content,
    page_response,
)
from service.http.idempotency import once
from service.http.ids import is_stream_entry_id
from service.http.json_bodies import body_of, json_route
from service.http.openapi_operations import EVENT_STREAM, EventPage, JobPage, Unfinished, documents
from service.http.preferences import preferred_wait
from service.http.problems import InvalidRequest, JobFinal, JobNotFinal, NoReport, NotFound, QuotaExceeded
from service.http.report_formats import HTML, Format, base_of, chosen_format, content_by_format, format_response
from service.jobs.events import SSE, event_page, event_stream
from service.jobs.posted_spec import LONGEST_SPEC, PostedSpec
from service.jobs.validation import unknown_upload, validate
from store.jobs.job_store import Missing, QueueFull
from store.records import JobRecord, NewJob

router = APIRouter(tags=["jobs"], route_class=json_route(LONGEST_SPEC))
POLL_S = {"queued": 1, "running": 2, "canceling": 1}

CREATE_PROBLEMS = (
    "malformed-request", "model-not-ready", "payload-too-large", "unsupported-media-type", "invalid-model",
    "unsafe-model", "export-failed", "idempotency-in-progress", "idempotency-key-reused", "quota-exceeded",
)  # fmt: skip


@router.post(
    "/jobs",
    **documents(
        "create_job",
        {202: Job, 200: Job},
        CREATE_PROBLEMS,
        headers=("Location", "Retry-After", "ETag"),
        request_headers=("Idempotency-Key", "Prefer"),
    ),
)
async def create_job(request: Request, posted: PostedSpec) -> Response:
    """Queue a job. A spec that cannot work is refused now, with every field at fault. With `Prefer: wait=N` the answer
    is 200 and the finished job if it ends in time."""
    context = context_of(request)

    async def store_and_deliver() -> Response:
        new = await validate(posted.read(), context)
        return job_response(await queue_job(context, new))

    response = await once(request, sha256(body_of(request)).hexdigest(), store_and_deliver)
    seconds = preferred_wait(request)
    if response.status_code != 202 or not seconds:
        return response
    job_id = response.headers["Location"].rsplit("/", 1)[-1]
    job = await wait_for_end(context, job_id, seconds)
    return job_response(job) if job else response


@router.get("/jobs", **documents("list_jobs", {200: JobPage}, headers=("Link",)))
async def list_jobs(
    request: Request,
    status: JobStatus | None = None,
    model: str | None = None,
    label: Annotated[str | None, Query(pattern="^[^=]+=", description="`name=value`")] = None,
    created_after: datetime | None = None,
    limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = 50,
    cursor: str | None = None,
) -> Response:
    """Jobs, newest first; all filters must hold."""
    name, _, value = (label or "").partition("=")
    jobs = await context_of(request).jobs.page(
        limit + 1,
        after=decode_cursor(cursor, "job"),
        status=status,
        model=model,
        label=(name, value) if label else None,
        created_after=_timestamp(created_after),
    )
    return page_response(request, "jobs", jobs, limit, jobs[:limit][-1].id if jobs else None)


@router.get(
    "/jobs/{job_id:id}",
    **documents(
        "get_job",
        {200: Job, 304: "Nothing has changed since the ETag in If-None-Match."},
        ("not-found",),
        headers=("ETag", "Retry-After"),
        request_headers=("If-None-Match", "Prefer"),
    ),
)
async def get_job(request: Request, job_id: str) -> Response:
    """One job. `Retry-After` says when to look again, until it has ended; `Prefer: wait=N` waits for the end."""
    context, seconds = context_of(request), preferred_wait(request)
    job = await (wait_for_end(context, job_id, seconds) if seconds else context.jobs.get(job_id))
    if job is None:
        raise unknown_job(job_id)
    headers = job_headers(job)
    if not_modified(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return json_response(job.json(), headers=headers)


@router.get(
    "/jobs/{job_id:id}/report",
    **documents(
        "get_report",
        {200: Report, 202: Unfinished},
        ("not-found", "not-acceptable", "job-failed", "job-canceled"),
        headers=("Retry-After", "Vary"),
        content=content_by_format("Report"),
    ),
)
async def get_report(request: Request, job_id: str, format: Format = None) -> Response:
    """The report: 202 until the job has ended. A job that failed or was canceled has none: 409, with its `error`.
    As JSON, as Markdown for a pull request, or as one HTML page that needs no network."""
    kind, base, context = chosen_format(request, format), base_of(request), context_of(request)
    job = await find_job(context, job_id)
    if not job.final:
        body = b'{"status":"%b","progress":%b}' % (job.status.encode(), job.progress_json)
        return json_response(body, 202, retry_after(job))
    report = await context.jobs.report(job_id) if job.status == "succeeded" else None
    if report is None:
        raise NoReport(job_id, job.status, job.error_json)
    return format_response(kind, report if kind == JSON else await asyncio.to_thread(_render, report, kind, base))


def _render(stored: bytes, kind: str, base: str) -> str:
    report = Report.model_validate_json(stored)
    return report_page(report, base) if kind == HTML else report_markdown(report, base)


@router.get(
    "/jobs/{job_id:id}/events",
    **documents(
        "get_events",
        {200: EventPage},
        ("not-found", "not-acceptable"),
        request_headers=("Last-Event-ID",),
        content={SSE: EVENT_STREAM, JSON: {"schema": {"$ref": "#/components/schemas/EventPage"}}},
    ),
)
async def get_events(request: Request, job_id: str) -> Response:
    """What happens to the job, as it happens: `state`, `progress`, `log`, and last `done`. With
    `Accept: application/json`, the events so far, at most 500 at a time."""
    kind = chosen_type(request, (SSE, JSON))
    context = context_of(request)
    await find_job(context, job_id)
    last_id = check_event_id(request.headers.get("last-event-id"))
    if kind == JSON:
        return json_response(await event_page(context.jobs, job_id, last_id))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    if request.scope["head"]:
        return Response(headers=headers, media_type=SSE)
    return StreamingResponse(event_stream(context, job_id, last_id), headers=headers, media_type=SSE)


@router.post(
    "/jobs/{job_id:id}/cancel",
    **documents("cancel_job", {202: Job, 200: Job}, ("not-found", "job-final"), headers=("ETag", "Retry-After")),
)
async def cancel_job(request: Request, job_id: str) -> Response:
    """Stop a job: 200 if it was still queued, so that it is canceled now; 202 if its worker has to stop first."""
    context = context_of(request)
    outcome = await context.jobs.request_cancel(job_id)
    if outcome.status == "none":
        raise unknown_job(job_id)
    if not outcome.moved:
        raise JobFinal(job_id, outcome.status)
    return job_response(await find_job(context, job_id), location=False)


@router.delete(
    "/jobs/{job_id:id}",
    **documents("delete_job", {204: "The job, its report and its artifacts are gone."}, ("not-found", "job-not-final")),
)
async def delete_job(request: Request, job_id: str) -> Response:
    """Forget a job that has ended, with its report and artifacts."""
    outcome = await context_of(request).jobs.delete(job_id)
    if outcome.moved:
        return no_content()
    if outcome.status == "none":
        raise unknown_job(job_id)
    raise JobNotFinal(job_id, outcome.status)


async def queue_job(context: ServiceContext, new: NewJob) -> JobRecord:
    """Store the job, then send its message. Raises ``InvalidRequest`` if an upload was deleted meanwhile."""
    try:
        job_id = await context.jobs.create(new)
    except QueueFull as full:
        raise QuotaExceeded.of_jobs(full.limit) from full
    except Missing as missing:
        raise InvalidRequest([unknown_upload(new, missing.upload_id)]) from missing
    await deliver(lambda: context.queue.deliver_job(job_id, new.model.size))
    return await find_job(context, job_id)


async def wait_for_end(context: ServiceContext, job_id: str, seconds: float) -> JobRecord | None:
    """The job once it has ended, or as it is when time is up or the gateway stops; ``None`` if there is none."""
    job = await context.stopping.until_shutdown(context.watched_jobs.wait_final(job_id, seconds))
    return job or await context.jobs.get(job_id)


async def find_job(context: ServiceContext, job_id: str) -> JobRecord:
    """Raises ``NotFound``."""
    job = await context.jobs.get(job_id)
    if job is None:
        raise unknown_job(job_id)
    return job


def unknown_job(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id}.")


def job_response(job: JobRecord, *, location: bool = True) -> Response:
    """202 while the job goes on, 200 once it has ended."""
    where = {"Location": f"/jobs/{job.id}"} if location else {}
    return json_response(job.json(), 200 if job.final else 202, job_headers(job) | where)


def job_headers(job: JobRecord) -> dict[str, str]:
    """Weak: equal revisions are equal in meaning (RFC 9110, 8.8.1)."""
    return {"ETag": f'W/"{job.revision}"', **retry_after(job)}


def retry_after(job: JobRecord) -> dict[str, str]:
    return {} if job.final else {"Retry-After": str(POLL_S[job.status])}


def not_modified(request: Request, etag: str) -> bool:
    """Weak comparison (RFC 9110, 13.1.2)."""
    given = request.headers.get("if-none-match")
    if given is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in given.split(",")}
    return "*" in tags or etag.removeprefix("W/") in tags


def check_event_id(given: str | None) -> str:
    """``0`` is before the first. Raises ``InvalidRequest``."""
    if given is None or given == "":
        return "0"
    if is_stream_entry_id(given):
        return given
    message = "Last-Event-ID is not the id of an event: two numbers with a dash between."
    raise InvalidRequest([FieldError(pointer="/header/last-event-id", code="unknown-event", message=message)])


def _timestamp(moment: datetime | None) -> float | None:
    """Without a time zone, UTC is meant."""
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
