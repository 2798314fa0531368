"""The body of ``POST /jobs``, read strictly: what is wrong with it is told field by field, all of it at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from fewbit.contract.problems import FieldError
from fewbit.contract.spec import JobSpec
from service.http.json_bodies import json_bytes, json_object
from service.http.problems import InvalidRequest

LONGEST_SPEC = 1024 * 1024
_CODES = {"extra_forbidden": "unknown-field", "missing": "required"}


@dataclass(frozen=True)
class ReadSpec:
    """``spec`` is what could be read; where ``errors`` name fields, it has the defaults in their place."""

    spec: JobSpec
    errors: tuple[FieldError, ...]


async def spec_body(request: Request) -> bytes:
    """Raises ``UnsupportedMediaType`` and ``PayloadTooLarge``."""
    return await json_bytes(request, LONGEST_SPEC)


def read_spec(body: bytes) -> ReadSpec:
    """Raises ``MalformedRequest`` for what is not JSON, ``InvalidRequest`` when too little is right to read on."""
    fields = json_object(body)
    try:
        return ReadSpec(_parsed(fields), ())
    except ValidationError as error:
        errors = tuple(field_errors(error.errors(include_url=False), fields))
    faulty = {each.pointer.split("/")[1] for each in errors if each.pointer.count("/") >= 1}
    rest = {name: value for name, value in fields.items() if escaped(name) not in faulty}
    try:
        return ReadSpec(_parsed(rest), errors)
    except ValidationError:
        raise InvalidRequest(errors) from None


def _parsed(fields: Mapping[str, Any]) -> JobSpec:
    """Strictly, and by pydantic's rules for JSON: arrays may become tuples, but "5" is no number."""
    return JobSpec.model_validate_json(json.dumps(fields), strict=True)


def field_errors(errors: Sequence[ErrorDetails], fields: Any) -> list[FieldError]:
    """pydantic's errors, one for each field. Of a union, each alternative's complaint is one more half-sentence."""
    merged: dict[str, list[ErrorDetails]] = {}
    for each in errors:
        merged.setdefault(pointer(each["loc"], fields, missing=each["type"] == "missing"), []).append(each)
    return [_field_error(where, group) for where, group in merged.items()]


def _field_error(where: str, group: Sequence[ErrorDetails]) -> FieldError:
    kind = group[0]["type"]
    if kind == "extra_forbidden":
        known = ", ".join(JobSpec.model_fields) if where.count("/") == 1 else ""
        message = f"There is no field {where}." + (f" There are {known}." if known else "")
    elif kind == "missing":
        message = f"{where} is required."
    else:
        message = f"{where}: " + ", or ".join(
            dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in group)
        )
    return FieldError(pointer=where, code=_CODES.get(kind, kind.replace("_", "-")), message=message)


def pointer(loc: Sequence[str | int], value: Any, *, missing: bool = False) -> str:
    """A JSON pointer (RFC 6901) from pydantic's location, which also names the alternative of a union it tried: those
    names are no part of what was sent, and the walk ends before them."""
    parts: list[str] = []
    for position, part in enumerate(loc):
        if _holds(value, part):
            value = value[part]
        elif not (missing and position == len(loc) - 1 and not _inside_union(loc)):
            break
        parts.append(escaped(str(part)))
    return "".join(f"/{part}" for part in parts)


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _inside_union(loc: Sequence[str | int]) -> bool:
    """``("weights", "range", "Percentile", "percentile")``: fields are lower case, alternatives are not."""
    return any(isinstance(part, str) and (part[:1].isupper() or "[" in part) for part in loc)


def escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
