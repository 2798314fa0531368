"""Receives a file, raw or as a form: hashed while it arrives, in constant memory. An upload that breaks off leaves
nothing."""

from __future__ import annotations

import binascii
import re
import shutil
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from uuid import uuid4

from anyio import to_thread
from starlette.requests import Request

from service.context import context_of
from service.http.answers import media_type
from service.http.multipart_forms import FilePart
from service.http.problems import DigestMismatch, MalformedRequest, PayloadTooLarge, QuotaExceeded, UnsupportedMediaType
from service.uploads.abandoned import reading_folder
from store.blobs.blob_store import BlobInfo, BlobMismatch, BlobTooLarge
from store.blobs.references import holding
from store.blobs.stored_bytes import QuotaPassed, Reservation
from store.tenancy.tenants import Tenant

RAW, FORM = "application/octet-stream", "multipart/form-data"
LONGEST_NAME = 255
HEAD_BYTES = 512
FORM_OVERHEAD = 64 * 1024  # boundaries, part headers and small fields beside the file
_REPR_DIGEST = re.compile(r"sha-256\s*=\s*:([A-Za-z0-9+/=]*):")

CheckHead = Callable[[bytes], None]
"""Called with a file's first bytes (``b""`` when it is empty); raises to refuse it before anything is kept."""


Hold = Callable[[BlobInfo], Awaitable[None]]


@dataclass(frozen=True)
class Upload:
    """A received file: where its bytes are, and what to call it."""

    blob: BlobInfo
    name: str | None


@asynccontextmanager
async def receive(request: Request, max_bytes: int, check: CheckHead) -> AsyncIterator[Upload]:
    """The file in the body. When the block ends its bytes are deleted, unless a model or dataset needs them by then.

    Raises ``UnsupportedMediaType``, ``PayloadTooLarge``, ``DigestMismatch``, ``MalformedRequest``,
    ``UploadInterrupted`` (by way of ``ClientDisconnect``), and what ``check`` raises.
    """
    context, holder = context_of(request), f"upload:{uuid4().hex}"
    tenant = Tenant(context.tenant)
    reservation = Reservation(context.redis, tenant, holder, context.settings.max_stored_bytes)
    # Held from just before the bytes are in place until they have been judged, so that an equal upload that is refused
    # or deleted meanwhile does not take them away. What was reserved becomes stored in the same step.
    async with holding(context.redis, context.blobs, tenant, holder) as hold:
        try:
            upload = await _receive(request, max_bytes, check, reservation, hold)
        except BaseException as error:
            if reservation.size:
                await reservation.release()
            if isinstance(error, QuotaPassed):
                raise QuotaExceeded.of_bytes(error.used, error.limit) from error
            raise
        yield upload


async def _receive(request: Request, max_bytes: int, check: CheckHead, reservation: Reservation, hold: Hold) -> Upload:
    content_type = request.headers.get("content-type", RAW)
    kind = media_type(content_type)
    if kind not in (RAW, FORM):
        raise UnsupportedMediaType(content_type, (RAW, FORM))
    if announced_size(request) > max_bytes + (FORM_OVERHEAD if kind == FORM else 0):
        raise PayloadTooLarge(max_bytes)
    part = FilePart(content_type, request.stream()) if kind == FORM else None
    chunks = reserve_while_reading(check_head(part.chunks() if part else request.stream(), check), reservation)
    await reservation.cover(announced_size(request) or 1)
    announced = announced_sha256(request)
    try:
        blob = await context_of(request).blobs.put_stream(chunks, max_bytes, announced, hold)
    except BlobTooLarge:
        raise PayloadTooLarge(max_bytes) from None
    except BlobMismatch:
        raise DigestMismatch(announced or "") from None
    return Upload(blob, file_name(request.query_params.get("name") or (part.filename if part else None)))


async def check_head(chunks: AsyncIterator[bytes], check: CheckHead) -> AsyncIterator[bytes]:
    """The same chunks without empty ones. ``check`` sees the first 512 bytes, or all of a shorter file, before anything
    goes on: the mark of a tar archive is at byte 257."""
    head: bytes | None = b""
    async for chunk in chunks:
        if head is None:
            if chunk:
                yield chunk
            continue
        head += chunk
        if len(head) >= HEAD_BYTES:
            check(head)
            yield head
            head = None
    if head is not None:
        check(head)
        yield head


async def reserve_while_reading(chunks: AsyncIterator[bytes], reservation: Reservation) -> AsyncIterator[bytes]:
    """The same chunks, as long as the tenant's quota has space for them. Raises ``QuotaPassed``."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        await reservation.grow(size)
        yield chunk


def announced_size(request: Request) -> int:
    """``Content-Length``, 0 without one. Raises ``MalformedRequest``."""
    given = request.headers.get("content-length", "0")
    if not (given.isascii() and given.isdecimal() and len(given) <= 19):
        raise MalformedRequest("Content-Length is not a number of bytes.")
    return int(given)


def announced_sha256(request: Request) -> str | None:
    """Of the file, from ``Repr-Digest`` (RFC 9530), in hex. Other algorithms are passed over."""
    header = request.headers.get("repr-digest")
    found = _REPR_DIGEST.search(header) if header else None
    if found is None:
        return None
    try:
        digest = b64decode(found[1], validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        raise MalformedRequest("Repr-Digest: sha-256 takes 32 bytes in base64 between colons.")
    return digest.hex()


def file_name(name: str | None) -> str | None:
    """The last segment of a path, without what has no place in a name."""
    if not name:
        return None
    last = PurePosixPath(name.replace("\\", "/")).name
    return "".join(character for character in last if character.isprintable())[:LONGEST_NAME] or None


@asynccontextmanager
async def upload_as_file(request: Request, upload: Upload) -> AsyncIterator[Path]:
    """The upload as a file that a reader can seek in; where blobs are files, that file itself."""
    blobs = context_of(request).blobs
    folder = await to_thread.run_sync(reading_folder, blobs)
    try:
        path = folder / "upload"
        await to_thread.run_sync(lambda: blobs.fetch(upload.blob.sha256, path, link=True))
        yield path
    finally:
        await to_thread.run_sync(shutil.rmtree, folder)
