"""``GET /audit``: who did what in one's own tenant, for its administrators."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.responses import JSONResponse

from fewbit.contract.problems import FieldError
from service.context import context_of
from service.http.answers import LONGEST_PAGE
from service.http.ids import is_stream_entry_id
from service.http.openapi_operations import documents
from service.http.problems import InvalidRequest
from store.tenancy.audit import page

router = APIRouter(tags=["service"])


class AuditLine(BaseModel):
    """One request, or command of the operator: which key did what to which thing, and how it ended. `times`: of equal
    refusals (401, 429) only the 1st, 10th, 100th, ... within an hour is listed; this is which one."""

    id: str
    at: str
    key: str
    action: str
    object: str
    outcome: int
    request_id: str
    client: str
    times: int = 1


class AuditPage(BaseModel):
    """Entries, newest first; `next` is the `cursor` of the page behind it."""

    entries: tuple[AuditLine, ...]
    next: str | None


@router.get("/audit", **documents("get_audit", {200: AuditPage}, ("forbidden",)))
async def get_audit(
    request: Request, limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = 50, cursor: str | None = None
) -> Response:
    """Who did what: every request of your tenant that would change something or take a result away, refusals, and what
    was done to its keys. For keys of scope `admin`."""
    context = context_of(request)
    entries = await page(context.redis, context.tenant, limit + 1, check_cursor(cursor))
    shown = [AuditLine.model_validate({"id": entry.id, **entry.fields}) for entry in entries[:limit]]
    following = shown[-1].id if len(entries) > limit else None
    return JSONResponse(AuditPage(entries=tuple(shown), next=following).model_dump(mode="json"))


def check_cursor(cursor: str | None) -> str | None:
    """Raises ``InvalidRequest``."""
    nothing_before = cursor is not None and set(cursor) == {"0", "-"}
    if cursor is None or (is_stream_entry_id(cursor) and "-" in cursor and not nothing_before):
        return cursor
    message = "cursor is not one this list has given out. Take it from `next`."
    raise InvalidRequest([FieldError(pointer="/query/cursor", code="unknown-cursor", message=message)])
