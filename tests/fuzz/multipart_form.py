"""A form with a file, ``service/http/multipart_forms.py``: pieces of forms in any order, cut anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hypothesis import strategies as st

from service.http.multipart_forms import FilePart
from service.http.problems import Refusal
from tests.fuzz import Target

_PIECES = st.sampled_from((
    b"--b\r\n", b"--b--\r\n", b'Content-Disposition: form-data; name="file"; filename="m"\r\n', b"\r\n",
    b"X: y\r\n",
    b'Content-Disposition: form-data; filename*=utf-8\'\'%ff\r\n',
    b"data", b"\r\n--b", b"\0", b"--", b": \r\n", b'filename="',
)) | st.binary(max_size=20)  # fmt: skip
_TYPES = st.sampled_from([
    "multipart/form-data; boundary=b", "multipart/form-data", 'multipart/form-data; boundary="',
    "multipart/form-data; boundary=" + "b" * 300,
])  # fmt: skip


def read_form(given: tuple[str, list[bytes]]) -> None:
    """To its end."""

    async def body() -> AsyncIterator[bytes]:
        for piece in given[1]:
            yield piece

    async def read() -> None:
        async for _ in FilePart(given[0], body()).chunks():
            pass

    asyncio.run(read())


TARGET = Target("multipart", st.tuples(_TYPES, st.lists(_PIECES, max_size=12)), read_form, (Refusal,))
