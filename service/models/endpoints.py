"""``/models``: uploaded once, inspected by a worker, used by many jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from fewbit.contract.problems import FieldError, JobProblem
from fewbit.contract.resources import Model
from service.context import context_of
from service.delivery import deliver
from service.http.answers import JSON, LONGEST_PAGE, json_response, media_type
from service.http.idempotency import once
from service.http.openapi_operations import ModelPage, documents
from service.http.problems import NotByReference, UnusableModel
from service.uploads.receive import FORM, RAW, receive
from service.uploads.resource import delete_upload, one_upload, page_of_uploads, upload_documentation
from store.ids import new_id

router = APIRouter(tags=["models"])

_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b")  # zip, and gzip around a tar
_KINDS = "a .pt2, a zip or tar of a Transformers folder, a file of torch.save or torch.jit.save"


@router.post(
    "/models",
    **documents(
        "upload_model",
        {201: Model, 200: Model},
        **upload_documentation("invalid-model"),
    ),
)
async def upload_model(request: Request, name: str | None = None) -> Response:  # noqa: ARG001  # read by receive()
    """Upload an exported program (`.pt2`), a Transformers folder (zip or tar of `config.json` and safetensors), a saved
    module of `torch.nn` classes or a TorchScript archive; which one it is shows in its bytes. Answers 200 with the
    known model if these bytes are already here. The model is usable once its inspection has ended: `status` is then
    `ready`, or `rejected` with the reason in `error`."""
    context = context_of(request)
    if media_type(request.headers.get("content-type", "")) == JSON:
        raise NotByReference((RAW, FORM))

    async def answer() -> Response:
        fresh = new_id("mdl")
        model, inspection_due = await context.models.create_or_get(upload.blob, upload.name, fresh)
        if inspection_due:
            await deliver(lambda: context.queue.deliver_inspection(model.id))
        return json_response(model.json(), 201 if model.id == fresh else 200, {"Location": f"/models/{model.id}"})

    async with receive(request, context.settings.max_model_bytes, check_model_head) as upload:
        return await once(request, upload.blob.sha256, answer)


@router.get("/models", **documents("list_models", {200: ModelPage}, headers=("Link",)))
async def list_models(
    request: Request, limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = 50, cursor: str | None = None
) -> Response:
    """Every model, newest first."""
    return await page_of_uploads(request, context_of(request).models, "mdl", limit, cursor)


@router.get("/models/{model_id:id}", **documents("get_model", {200: Model}, ("not-found",)))
async def get_model(request: Request, model_id: str) -> Response:
    """One model, with its inputs and its layer table once it is `ready`."""
    return await one_upload(context_of(request).models, "mdl", model_id)


@router.delete(
    "/models/{model_id:id}", **documents("delete_model", {204: "The model is gone."}, ("not-found", "in-use"))
)
async def delete_model(request: Request, model_id: str) -> Response:
    """Forget a model and its bytes. Jobs that have ended keep their reports and artifacts."""
    return await delete_upload(context_of(request).models, "mdl", model_id)


def check_model_head(head: bytes) -> None:
    """Refuse what cannot be a model by its first bytes: a zip or tar archive or a pickle can. Raises
    ``UnusableModel``."""
    if head.startswith(_ARCHIVES) or head[257:262] == b"ustar" or (head[:1] == b"\x80" and 2 <= (head + b"\0")[1] <= 5):
        return
    detail = f"The upload is none of these: {_KINDS}." if head else "The upload is empty."
    wrong = FieldError(pointer="", code="not-a-model", message=detail)
    raise UnusableModel(JobProblem.of("invalid-model", detail), [wrong])
