"""What all answers have in common: a request id, a body only if the method asks for one, and one shape of errors."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, cast

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewbit.contract.problems import FieldError
from service.http.field_errors import field_errors
from service.http.problems import (
    InvalidRequest,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    Refusal,
    ServiceError,
    ServiceUnavailable,
    UploadInterrupted,
)
from service.http.security_headers import add_security_headers
from store.outage import is_outage

log = structlog.get_logger("fewbit.gateway")
RESUMABLE = (
    " Resumable uploads are not part of this release. Send the whole file to POST /models or POST /datasets, with an "
    "Idempotency-Key so that it is safe to send it again."
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}\Z")


class Envelope:
    """The outermost layer. Pure ASGI: it sees each message, and holds none back."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = given_id(scope) or b"req_" + secrets.token_hex(12).encode()
        scope["request_id"] = request_id.decode()
        scope["head"] = scope["method"] == "HEAD"
        # The server keeps the original scope and drops the body of a HEAD answer; every route here answers GET.
        inner = {**scope, "method": "GET"} if scope["head"] else scope

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-request-id", request_id))
                add_security_headers(message)
            await send(message)

        await answer_errors(self.app, inner, receive, labelled)


async def answer_errors(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run ``app``. What it raises is sent as a problem, so that wrappers of ``send`` see it too."""
    started = False

    async def noted(message: Message) -> None:
        nonlocal started
        started = True
        await send(message)

    try:
        await app(scope, receive, noted)
    except Exception as error:
        if isinstance(error, ClientDisconnect) and started:
            return
        if started:  # half an answer cannot become a problem: break off, so that nobody takes it for whole
            raise
        await refusal_of(error, scope).render(scope["request_id"])(scope, receive, send)


def given_id(scope: Scope) -> bytes | None:
    """The caller's own id, if it is fit for a log."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return bytes(value) if _REQUEST_ID.match(value) else None
    return None


async def refuse(request: Request, error: Exception) -> Response:
    """FastAPI's hook for the errors it would answer itself."""
    return refusal_of(error, request.scope).render(request.scope["request_id"])


def refusal_of(error: Exception, scope: Scope) -> Refusal:
    """The problem an exception stands for. One that nobody foresaw is logged, and the answer says nothing of it."""
    match error:
        case Refusal():
            return error
        case RequestValidationError():
            return InvalidRequest(_field_errors(error))
        case HTTPException():
            return _of_http(error, scope)
        case ClientDisconnect():
            return UploadInterrupted("The connection ended before the body did.")
        case _ if is_outage(error):
            log.warning("store is away", request_id=scope["request_id"], error=repr(error))
            return ServiceUnavailable("Redis does not answer, or takes nothing more.")
    log.error("unhandled", request_id=scope["request_id"], path=scope["path"], exc_info=error)
    return ServiceError()


def _of_http(error: HTTPException, scope: Scope) -> Refusal:
    """What Starlette and FastAPI raise on their own."""
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return NotFound(f"There is no {scope['path']}.{_instead(scope['path'])}")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            method = "HEAD" if scope["head"] else scope["method"]
            return MethodNotAllowed(method, allowed_methods(scope["app"], scope))
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return PayloadTooLarge(0)
        case status if status < 500:
            return MalformedRequest(str(error.detail))
    return ServiceError()


def _instead(path: str) -> str:
    return RESUMABLE if path == "/uploads" or path.startswith("/uploads/") else ""


def allowed_methods(app: FastAPI, scope: Scope) -> list[str]:
    """Every method of the path, over all of its routes."""
    methods: set[str] = set()
    for route in app.routes:
        if route.matches(scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def _field_errors(error: RequestValidationError) -> list[FieldError]:
    """Of a JSON body, by pointer; of query parameters, headers and path segments, below their place."""
    details: Sequence[Any] = error.errors()
    in_body = [{**one, "loc": one["loc"][1:]} for one in details if one["loc"][0] == "body"]
    elsewhere = [one for one in details if one["loc"][0] != "body"]
    return [*map(_field_error, elsewhere), *field_errors(cast(Sequence[ErrorDetails], in_body), error.body)]


def _field_error(details: ErrorDetails) -> FieldError:
    """A query parameter, header or path segment that does not parse."""
    location = details["loc"]
    pointer = "/" + "/".join(str(part) for part in location)
    message = f"{location[-1]}: {details['msg']}"
    return FieldError(pointer=pointer, code=details["type"].replace("_", "-"), message=message)
