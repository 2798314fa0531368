"""pydantic's errors as those of the API: one for each field, with a JSON pointer to what was sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import ErrorDetails

from fewbit.contract.problems import FieldError

_CODES = {"extra_forbidden": "unknown-field", "missing": "required"}


def field_errors(errors: Sequence[ErrorDetails], fields: Any, known_fields: Sequence[str] = ()) -> list[FieldError]:
    """One for each field. Of a union, the complaint of each alternative is one more half-sentence. ``known_fields``:
    those of the body itself, for an error about one that is not among them."""
    merged: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        merged.setdefault(pointer(error["loc"], fields, missing=error["type"] == "missing"), []).append(error)
    return [_field_error(where, group, known_fields) for where, group in merged.items()]


def _field_error(where: str, group: Sequence[ErrorDetails], known_fields: Sequence[str]) -> FieldError:
    kind = group[0]["type"]
    if kind == "extra_forbidden":
        known = ", ".join(known_fields) if where.count("/") == 1 else ""
        message = f"There is no field {where}." + (f" There are {known}." if known else "")
    elif kind == "missing":
        message = f"{where} is required."
    else:
        message = f"{where}: " + ", or ".join(
            dict.fromkeys(error["msg"].removeprefix("Value error, ") for error in group)
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
