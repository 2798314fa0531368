"""JSON as it comes from outside: bounded in depth, integers that fit, no key twice, text that can be written again.

A float too large for a double is read as infinite, which the models refuse by field."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from service.http.answers import JSON, media_type
from service.http.problems import MalformedRequest, PayloadTooLarge, UnsupportedMediaType

DEEPEST = 32
LARGEST = 2**63


async def json_bytes(request: Request, limit: int) -> bytes:
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
        fields = json.loads(text, object_pairs_hook=_pairs, parse_constant=_no_constant, parse_int=_int)
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
    for each in text:
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = each == "\\", each != '"'
        elif each == '"':
            quoted = True
        elif each in "[{":
            depth += 1
            if depth > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
        elif each in "]}":
            depth -= 1


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"the key {name!r} appears twice in one object")
        fields[name] = value
    return fields


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _int(digits: str) -> int:
    if len(digits) > 20 or not -LARGEST <= int(digits) < LARGEST:
        raise ValueError("an integer does not fit in 64 bits")
    return int(digits)
