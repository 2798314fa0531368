"""The few kinds of successful answers: stored JSON, a page of a list, no content."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from fewbit.contract.problems import FieldError
from service.http.ids import is_id
from service.http.problems import InvalidRequest, NotAcceptable
from store.ids import Kind

JSON = "application/json"
LONGEST_PAGE = 200


class Record(Protocol):
    """A stored thing that knows its own JSON."""

    def json(self) -> bytes: ...


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status, headers, JSON)


def no_content() -> Response:
    return Response(status_code=204)


def page_response(request: Request, name: str, records: Sequence[Record], limit: int, last_id: str | None) -> Response:
    """``{"<name>": [...], "next": cursor}``. The caller asked the store for ``limit + 1`` records: one too many says
    that there is a next page. ``last_id`` is the last one's on this page."""
    cursor = encode_cursor(last_id) if last_id and len(records) > limit else None
    headers = {}
    if cursor:
        following = request.url.include_query_params(cursor=cursor)
        headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    listed = b",".join(record.json() for record in records[:limit])
    following_json = f'"{cursor}"'.encode() if cursor else b"null"
    return json_response(b'{"%b":[%b],"next":%b}' % (name.encode(), listed, following_json), headers=headers)


def media_type(content_type: str) -> str:
    """Without its parameters, in small letters."""
    return content_type.partition(";")[0].strip().lower()


def encode_cursor(last_id: str) -> str:
    return urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, kind: Kind) -> str | None:
    """The id in a cursor. Raises ``InvalidRequest`` for text that is no cursor of this kind of list."""
    if cursor is None:
        return None
    try:
        last_id = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except ValueError:
        last_id = ""
    if not is_id(last_id, kind):
        message = "cursor is not one this list has given out. Take it from `next`, or follow the Link header."
        raise InvalidRequest([FieldError(pointer="/query/cursor", code="unknown-cursor", message=message)])
    return last_id


def chosen_type(request: Request, available: Sequence[str]) -> str:
    """The first media type of ``available`` that ``Accept`` takes, the most wanted first (RFC 9110, 12.5.1).
    Raises ``NotAcceptable``."""
    accept = request.headers.get("accept", "*/*")
    weighed = [(weight, name) for name in available if (weight := _weight(name, accept)) > 0]
    if not weighed:
        raise NotAcceptable(*available)
    return max(weighed, key=lambda choice: choice[0])[1]  # max keeps the first of equals


def _weight(name: str, accept: str) -> float:
    """How much ``Accept`` wants a media type; its most specific range decides."""
    kind = name.partition("/")[0]
    ranges = dict(_ranges(accept.split(",")))
    return next((ranges[range_name] for range_name in (name, f"{kind}/*", "*/*") if range_name in ranges), 0.0)


def _ranges(parts: Iterable[str]) -> Iterable[tuple[str, float]]:
    for part in parts:
        name, *parameters = (parameter.strip().lower() for parameter in part.split(";"))
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        try:
            yield name, float(quality)
        except ValueError:
            yield name, 1.0
