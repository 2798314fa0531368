"""The one file of a ``multipart/form-data`` body, as a stream: nothing is spooled to disk (RFC 7578)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.http.problems import MalformedRequest, UploadInterrupted


class FilePart:
    """Iterate over ``chunks()`` to the end; ``filename`` is known from the first of them on."""

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise MalformedRequest("The Content-Type multipart/form-data names no boundary.")
        self.filename: str | None = None
        self._body = body
        try:
            self._parser = _parser(boundary, self)
        except FormParserError as error:
            raise MalformedRequest(f"The boundary cannot be used: {error}") from error
        self._ready: list[bytes] = []
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._in_file = False
        self._seen = False
        self._ended = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file's bytes. Raises ``MalformedRequest`` and ``UploadInterrupted``."""
        async for chunk in self._body:
            self._feed(chunk)
            for piece in self._ready:
                yield piece
            self._ready.clear()
        if not self._ended:
            raise UploadInterrupted("The body ended before its closing boundary.")
        if not self._seen:
            raise MalformedRequest("The form has no file. Send one, for example with `curl -F file=@model.pt2`.")

    def _feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedRequest(f"The multipart body cannot be read: {error}") from error

    # What the parser calls

    def on_part_begin(self) -> None:
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        filename = options.get(b"filename")
        self._in_file = filename is not None or options.get(b"name") == b"file"
        if self._in_file and self._seen:
            raise MalformedRequest("The form has more than one file. Send them one at a time.")
        if self._in_file:
            self._seen = True
            self.filename = filename.decode("utf-8", "replace") if filename else None

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._ready.append(data[start:end])

    def on_end(self) -> None:
        self._ended = True


def _parser(boundary: bytes, part: FilePart) -> MultipartParser:
    return MultipartParser(
        boundary,
        {
            "on_part_begin": part.on_part_begin,
            "on_header_field": part.on_header_field,
            "on_header_value": part.on_header_value,
            "on_header_end": part.on_header_end,
            "on_headers_finished": part.on_headers_finished,
            "on_part_data": part.on_part_data,
            "on_end": part.on_end,
        },
    )
