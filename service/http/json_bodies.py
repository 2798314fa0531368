"""JSON as it comes from outside: bounded in depth, integers that fit, no key twice, text that can be written again.

A float too large for a double is read as infinite, which the models refuse by field."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from fewbit.untrusted.json_objects import unique_keys
from service.http.answers import JSON, media_type
from service.http.problems import MalformedRequest, PayloadTooLarge, UnsupportedMediaType

DEEPEST = 32
LARGEST = 2**63


def json_route(limit: int) -> type[APIRoute]:
    """The route class of a resource whose JSON bodies have at most ``limit`` bytes. FastAPI validates what is read here
    against the type in the endpoint's signature."""

    class JsonRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_json(request: Request) -> Response:
                body = await _read(request, limit)
                return await handle(_JsonRequest(request.scope, body))

            return handle_json if self.body_field else handle

    return JsonRoute


def body_of(request: Request) -> bytes:
    """The bytes of a body that such a route has read."""
    assert isinstance(request, _JsonRequest)
    return request.content


class _JsonRequest(Request):
    """One whose body was read before."""

    def __init__(self, scope: Scope, content: bytes) -> None:
        super().__init__(scope)
        self.content = content
        self._fields = json_object(content)

    async def body(self) -> bytes:
        return self.content

    async def json(self) -> dict[str, Any]:
        return self._fields


async def _read(request: Request, limit: int) -> bytes:
    """Raises ``UnsupportedMediaType`` and ``PayloadTooLarge``."""
    content_type = request.headers.get("content-type", "")
    if media_type(content_type) != JSON:
        raise UnsupportedMediaType(content_type, (JSON,))
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise PayloadTooLarge(limit)
    return bytes(body)


def json_object(body: bytes) -> dict[str, Any]:
    """Raises ``MalformedRequest``."""
    try:
        text = body.decode()
        _check_depth(text)
        fields = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_no_constant, parse_int=_int)
        json.dumps(fields, ensure_ascii=False).encode()  # a lone surrogate is no text
    except UnicodeEncodeError:
        raise MalformedRequest("The body is not JSON: it holds half a surrogate pair.") from None
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"The body is not JSON: {str(error)[:300]}.") from error
    if not isinstance(fields, dict):
        raise MalformedRequest("The body is not a JSON object.")
    return fields


def _check_depth(text: str) -> None:
    """Before it is parsed; strings are stepped over."""
    depth, quoted, escaped = 0, False, False
    for character in text:
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = character == "\\", character != '"'
        elif character == '"':
            quoted = True
        elif character in "[{":
            depth += 1
            if depth > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
        elif character in "]}":
            depth -= 1


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _int(digits: str) -> int:
    if len(digits) > 20 or not -LARGEST <= int(digits) < LARGEST:
        raise ValueError("an integer does not fit in 64 bits")
    return int(digits)
