"""``GET /compare``: two to eight jobs side by side."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from fewbit.contract.problems import FieldError
from fewbit.contract.report import Report
from fewbit.rendering.comparison import FEWEST, MOST, Comparison, compare
from fewbit.rendering.comparison_markdown import comparison_markdown
from fewbit.rendering.html.comparison_page import comparison_page
from service.context import ServiceContext, context_of
from service.http.ids import is_id
from service.http.openapi_operations import documents
from service.http.problems import InvalidRequest, JobNotFinal, NoReport
from service.http.report_formats import (
    HTML,
    MARKDOWN,
    Format,
    base_of,
    chosen_format,
    content_by_format,
    format_response,
)
from service.jobs.endpoints import find_job, unknown_job

router = APIRouter(tags=["jobs"])


@router.get(
    "/compare",
    **documents(
        "compare_jobs",
        {200: Comparison},
        ("not-found", "not-acceptable", "job-not-final", "job-failed", "job-canceled"),
        headers=("Vary",),
        content=content_by_format("Comparison"),
    ),
)
async def compare_jobs(
    request: Request,
    job: Annotated[list[str], Query(description="Once for each job: two to eight of them, all succeeded.")] = [],  # noqa: B006  # FastAPI copies it
    format: Format = None,
) -> Response:
    """Jobs side by side: the summary with the best value of each row, and layer by layer, matched by name."""
    kind, base, context = chosen_format(request, format), base_of(request), context_of(request)
    stored = [await find_report(context, job_id) for job_id in check_jobs(job)]
    body = await asyncio.to_thread(_render, stored, kind, base)
    return format_response(kind, body)


def _render(stored: list[bytes], kind: str, base: str) -> str:
    comparison = compare([Report.model_validate_json(report) for report in stored])
    if kind == HTML:
        return comparison_page(comparison, base)
    return comparison_markdown(comparison) if kind == MARKDOWN else comparison.model_dump_json()


def check_jobs(jobs: list[str]) -> list[str]:
    """Raises ``InvalidRequest`` unless there are two to eight, each once."""
    if not FEWEST <= len(jobs) <= MOST:
        message = f"{len(jobs)} jobs were given. Give {FEWEST} to {MOST}: /compare?job=…&job=…"
        raise InvalidRequest([FieldError(pointer="/query/job", code="job-count", message=message)])
    if twice := [job_id for index, job_id in enumerate(jobs) if job_id in jobs[:index]]:
        message = f"{twice[0]} is there more than once. Give each job once."
        raise InvalidRequest([FieldError(pointer="/query/job", code="duplicate-job", message=message)])
    return jobs


async def find_report(context: ServiceContext, job_id: str) -> bytes:
    """Raises ``NotFound``, ``JobNotFinal`` or ``NoReport``, each naming the job."""
    if not is_id(job_id, "job"):
        raise unknown_job(job_id)
    found = await find_job(context, job_id)
    if not found.final:
        raise JobNotFinal(job_id, found.status)
    report = await context.jobs.report(job_id) if found.status == "succeeded" else None
    if report is None:
        raise NoReport(job_id, found.status, found.error_json)
    return report
