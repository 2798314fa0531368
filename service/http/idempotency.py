"""``Idempotency-Key``: what a request creates, it creates once, however often it is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from fewbit.contract.problems import FieldError
from service.context import context_of
from service.http.envelope import refusal_of
from service.http.problems import IdempotencyInProgress, IdempotencyKeyReused, InvalidRequest, Refusal
from store.idempotency import InProgress, Reused

LONGEST_KEY = 255
NOT_KEPT = frozenset({"content-length", "x-request-id"})


async def once(request: Request, content_sha256: str, answer: Callable[[], Awaitable[Response]]) -> Response:
    """``answer()``, or the stored answer of an equal request. Raises what ``answer`` raises."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return await answer()
    _check(key)
    store, user = context_of(request).idempotency, request_user(request)
    fingerprint = _fingerprint(request, content_sha256)
    try:
        stored = await store.begin(user, key, fingerprint)
    except InProgress:
        raise IdempotencyInProgress from None
    except Reused:
        raise IdempotencyKeyReused from None
    if stored is not None:
        return Response(stored.body, stored.status, stored.headers)
    try:
        response, refusal = await answer(), None
    except Exception as error:
        refusal = refusal_of(error, request.scope)
        response = refusal.render(request.scope["request_id"])
    if _final(response, refusal):
        kept = {name: value for name, value in response.headers.items() if name not in NOT_KEPT}
        await store.finish(user, key, fingerprint, response.status_code, kept, bytes(response.body))
    else:
        await store.abandon(user, key)
    return response


def request_user(request: Request) -> str:
    """Whose the key is: nobody else meets it, not even in the same tenant."""
    caller = request.scope["caller"]
    return f"{caller.tenant}:{caller.user}"


def _final(response: Response, refusal: Refusal | None) -> bool:
    """Whether the same request would get this answer again: not a 5xx, not a 429, and no refusal that says "try again"
    or when. A 202 says when to look, and is kept."""
    if response.status_code < 400:
        return True
    later = response.status_code == HTTPStatus.TOO_MANY_REQUESTS or "retry-after" in response.headers
    return response.status_code < 500 and not later and not (refusal and refusal.kind.retryable)


def _fingerprint(request: Request, content_sha256: str) -> str:
    target = f"{request.method} {request.url.path}?{request.url.query} {content_sha256}"
    return sha256(target.encode()).hexdigest()


def _check(key: str) -> None:
    if not 1 <= len(key) <= LONGEST_KEY:
        message = f"Idempotency-Key has 1 to {LONGEST_KEY} characters."
        raise InvalidRequest([FieldError(pointer="/header/idempotency-key", code="bad-length", message=message)])
