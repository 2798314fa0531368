"""The headers and cursors that the gateway reads itself: Range, Repr-Digest, Prefer, Accept, If-None-Match, cursors."""

from __future__ import annotations

from hypothesis import strategies as st
from starlette.requests import Request

import service.app  # noqa: F401  # registers {…:id}
from service.artifacts.ranges import requested_range
from service.audit.endpoints import check_cursor
from service.http.answers import chosen_type, decode_cursor
from service.http.preferences import preferred_wait
from service.http.problems import Refusal
from service.jobs.endpoints import check_event_id, not_modified
from service.uploads.receive import announced_sha256, announced_size, file_name
from tests.fuzz import Target

_PIECES = st.sampled_from(
    (
        "bytes=",
        "-",
        "0",
        "99999999999999999999",
        ",",
        "sha-256=:",
        ":",
        "=",
        "wait=",
        ";q=",
        "*/*",
        "W/",
        '"',
        "AAAA",
        " ",
        "\xb2",
    )
)
_VALUES = (st.lists(_PIECES, max_size=8).map("".join) | st.text(st.characters(max_codepoint=255), max_size=60)).map(
    lambda text: text.encode("latin-1")
)
NAMES = (b"range", b"repr-digest", b"prefer", b"accept", b"if-none-match", b"if-range", b"content-length")


def read_headers(value: bytes) -> None:
    """Each reader must read or refuse; none may keep another from its turn."""
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": [(name, value) for name in NAMES]})
    text = value.decode("latin-1")
    readers = (
        lambda: requested_range(Request({**request.scope, "headers": [(b"range", value)]}), 100, '"a"'),
        lambda: announced_sha256(request),
        lambda: announced_size(request),
        lambda: preferred_wait(request),
        lambda: chosen_type(request, ("application/json", "text/html")),
        lambda: not_modified(request, 'W/"1"'),
        lambda: decode_cursor(text, "job"),
        lambda: check_cursor(text),
        lambda: check_event_id(text),
        lambda: file_name(text),
    )
    for reader in readers:
        try:
            reader()
        except Refusal:
            continue


TARGET = Target("request headers", _VALUES, read_headers, ())
