"""What the endpoints of models and datasets have in common: one upload, a page of them, and deletion."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from service.http.answers import decode_cursor, json_response, no_content, page_response
from service.http.openapi_operations import UPLOAD
from service.http.problems import InUse, NotFound
from store.ids import Kind
from store.uploads import Uploads

_NAMES: dict[Kind, str] = {"mdl": "model", "dst": "dataset"}


def upload_documentation(invalid: str) -> dict[str, Any]:
    """For ``documents``; ``invalid``: the problem of a file that cannot be used."""
    return {
        "problems": (
            "malformed-request", "upload-interrupted", "payload-too-large", "unsupported-media-type", "digest-mismatch",
            invalid, "idempotency-in-progress", "idempotency-key-reused", "quota-exceeded",
        ),
        "body": UPLOAD,
        "headers": ("Location",),
        "request_headers": ("Idempotency-Key", "Repr-Digest"),
    }  # fmt: skip


async def one_upload(uploads: Uploads[Any], kind: Kind, upload_id: str) -> Response:
    """Raises ``NotFound``."""
    record = await uploads.get(upload_id)
    if record is None:
        raise _unknown(kind, upload_id)
    return json_response(record.json())


async def page_of_uploads(
    request: Request, uploads: Uploads[Any], kind: Kind, limit: int, cursor: str | None
) -> Response:
    """Newest first. Raises ``InvalidRequest``."""
    records = await uploads.page(limit + 1, decode_cursor(cursor, kind))
    last_id = records[:limit][-1].blob.id if records else None
    return page_response(request, f"{_NAMES[kind]}s", records, limit, last_id)


async def delete_upload(uploads: Uploads[Any], kind: Kind, upload_id: str) -> Response:
    """Raises ``NotFound`` and ``InUse``."""
    match await uploads.delete(upload_id):
        case "none":
            raise _unknown(kind, upload_id)
        case "in-use":
            raise InUse(f"A job that has not ended uses {upload_id}.")
    return no_content()


def _unknown(kind: Kind, upload_id: str) -> NotFound:
    return NotFound(f"There is no {_NAMES[kind]} {upload_id}.")
