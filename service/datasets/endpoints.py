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
from service.http.answers import LONGEST_PAGE, json_response
from service.http.idempotency import once
from service.http.openapi_operations import DatasetPage, documents
from service.http.problems import InvalidDataset
from service.uploads.receive import Upload, receive, upload_as_file
from service.uploads.resource import delete_upload, one_upload, page_of_uploads, upload_documentation

router = APIRouter(tags=["datasets"])


@router.post(
    "/datasets",
    **documents(
        "upload_dataset",
        {201: Dataset, 200: Dataset},
        **upload_documentation("invalid-dataset"),
    ),
)
async def upload_dataset(request: Request, name: str | None = None) -> Response:  # noqa: ARG001  # read by receive()
    """Upload a `.npz` or `.safetensors` of named arrays whose first axis counts samples. An array named like an
    argument of the model's `forward` is that input; `labels` is the label. Nothing in the file is ever unpickled."""
    context = context_of(request)

    async def answer() -> Response:
        found = await contents_of(request, upload)
        dataset, created = await context.datasets.create_or_get(
            upload.blob, upload.name, found.format, found.samples, found.arrays
        )
        location = {"Location": f"/datasets/{dataset.dataset.id}"}
        return json_response(dataset.json(), 201 if created else 200, location)

    async with receive(request, context.settings.max_dataset_bytes, check_dataset_head) as upload:
        return await once(request, upload.blob.sha256, answer)


@router.get("/datasets", **documents("list_datasets", {200: DatasetPage}, headers=("Link",)))
async def list_datasets(
    request: Request, limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = 50, cursor: str | None = None
) -> Response:
    """Every dataset, newest first."""
    return await page_of_uploads(request, context_of(request).datasets, "dst", limit, cursor)


@router.get("/datasets/{dataset_id:id}", **documents("get_dataset", {200: Dataset}, ("not-found",)))
async def get_dataset(request: Request, dataset_id: str) -> Response:
    """One dataset, with its arrays."""
    return await one_upload(context_of(request).datasets, "dst", dataset_id)


@router.delete(
    "/datasets/{dataset_id:id}", **documents("delete_dataset", {204: "The dataset is gone."}, ("not-found", "in-use"))
)
async def delete_dataset(request: Request, dataset_id: str) -> Response:
    """Forget a dataset and its bytes."""
    return await delete_upload(context_of(request).datasets, "dst", dataset_id)


async def contents_of(request: Request, upload: Upload) -> Contents:
    """What is in the file, read in a thread. Raises ``InvalidDataset``."""
    limit = context_of(request).settings.max_unpacked_dataset_bytes
    try:
        async with upload_as_file(request, upload) as path:
            return await to_thread.run_sync(read, path, limit)
    except Unreadable as error:
        raise InvalidDataset(error.errors) from error


def check_dataset_head(head: bytes) -> None:
    """Raises ``InvalidDataset`` for an empty file; everything else takes the whole of it."""
    if not head:
        raise InvalidDataset([FieldError(pointer="", code="empty", message="The upload is empty.")])
