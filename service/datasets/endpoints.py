"""``/datasets``: named arrays, judged while the caller waits, so that a stored dataset is always usable."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response

from fewbit.contract.problems import FieldError
from fewbit.contract.resources import Dataset
from service.context import context_of
from service.datasets.declared import Unreadable
from service.datasets.reading import Contents, read
from service.http.answers import LONGEST_PAGE, decode_cursor, json_answer, nothing, page_answer
from service.http.idempotency import once
from service.http.openapi_operations import UPLOAD, DatasetPage, documents
from service.http.problems import InUse, InvalidDataset, NotFound
from service.uploads.receive import Upload, at_hand, received

router = APIRouter(tags=["datasets"])

UPLOAD_PROBLEMS = (
    "malformed-request", "upload-interrupted", "payload-too-large", "unsupported-media-type", "digest-mismatch",
    "invalid-dataset", "idempotency-in-progress", "idempotency-key-reused", "quota-exceeded",
)  # fmt: skip


@router.post(
    "/datasets",
    **documents(
        "upload_dataset",
        {201: Dataset, 200: Dataset},
        UPLOAD_PROBLEMS,
        body=UPLOAD,
        headers=("Location",),
        request_headers=("Idempotency-Key", "Repr-Digest"),
    ),
)
async def upload_dataset(request: Request, name: str | None = None) -> Response:  # noqa: ARG001  # read by received()
    """Upload a `.npz` or `.safetensors` of named arrays whose first axis counts samples. An array named like an
    argument of the model's `forward` is that input; `labels` is the label. Nothing in the file is ever unpickled."""
    context = context_of(request)

    async def answer() -> Response:
        found = await contents_of(request, upload)
        dataset, created = await context.datasets.create_or_get(
            upload.blob, upload.name, found.format, found.samples, found.arrays
        )
        location = {"Location": f"/datasets/{dataset.dataset.id}"}
        return json_answer(dataset.json(), 201 if created else 200, location)

    async with received(request, context.settings.max_dataset_bytes, look_at_dataset) as upload:
        return await once(request, upload.blob.sha256, answer)


@router.get("/datasets", **documents("list_datasets", {200: DatasetPage}, headers=("Link",)))
async def list_datasets(
    request: Request, limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = 50, cursor: str | None = None
) -> Response:
    """Every dataset, newest first."""
    datasets = await context_of(request).datasets.page(limit + 1, decode_cursor(cursor, "dst"))
    return page_answer(request, "datasets", datasets, limit, datasets[:limit][-1].dataset.id if datasets else None)


@router.get("/datasets/{dataset_id:id}", **documents("get_dataset", {200: Dataset}, ("not-found",)))
async def get_dataset(request: Request, dataset_id: str) -> Response:
    """One dataset, with its arrays."""
    dataset = await context_of(request).datasets.get(dataset_id)
    if dataset is None:
        raise NotFound(f"There is no dataset {dataset_id}.")
    return json_answer(dataset.json())


@router.delete(
    "/datasets/{dataset_id:id}", **documents("delete_dataset", {204: "The dataset is gone."}, ("not-found", "in-use"))
)
async def delete_dataset(request: Request, dataset_id: str) -> Response:
    """Forget a dataset and its bytes."""
    match await context_of(request).datasets.delete(dataset_id):
        case "none":
            raise NotFound(f"There is no dataset {dataset_id}.")
        case "in-use":
            raise InUse(f"A job that has not ended uses {dataset_id}.")
    return nothing()


async def contents_of(request: Request, upload: Upload) -> Contents:
    """What is in the file, read in a thread. Raises ``InvalidDataset``."""
    limit = context_of(request).settings.max_unpacked_dataset_bytes
    try:
        async with at_hand(request, upload) as path:
            return await to_thread.run_sync(read, path, limit)
    except Unreadable as error:
        raise InvalidDataset(error.errors) from error


def look_at_dataset(head: bytes) -> None:
    """Raises ``InvalidDataset`` for an empty file; everything else takes the whole of it."""
    if not head:
        raise InvalidDataset([FieldError(pointer="", code="empty", message="The upload is empty.")])
