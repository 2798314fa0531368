"""``/jobs/{id}/artifacts``: the files a job made, whole or in part."""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse, StreamingResponse

from fewbit.contract.resources import Artifact
from service.artifacts.ranges import requested_range
from service.context import context_of
from service.http.openapi_operations import DOWNLOAD, ArtifactList, documents
from service.http.problems import NotFound
from service.jobs.endpoints import find_job, not_modified
from store.records import ArtifactRecord, JobRecord

router = APIRouter(tags=["artifacts"])
FILE_HEADERS = ("ETag", "Repr-Digest", "Accept-Ranges", "Content-Disposition")


@router.get("/jobs/{job_id:id}/artifacts", **documents("list_artifacts", {200: ArtifactList}, ("not-found",)))
async def list_artifacts(request: Request, job_id: str) -> Response:
    """The files of a job; none until it has succeeded."""
    job = await find_job(context_of(request), job_id)
    listed = [described(job, artifact).model_dump(mode="json") for artifact in job.artifacts]
    return JSONResponse({"artifacts": listed})


@router.get(
    "/jobs/{job_id:id}/artifacts/{name}",
    **documents(
        "download_artifact",
        {200: "The file.", 206: "The requested part of it.", 304: "The file is still the one in If-None-Match."},
        ("not-found", "range-not-satisfiable"),
        headers=FILE_HEADERS,
        request_headers=("Range", "If-Range", "If-None-Match"),
        content=DOWNLOAD,
    ),
)
async def download_artifact(request: Request, job_id: str, name: str) -> Response:
    """One file. Its ETag and `Repr-Digest` are its SHA-256, so an interrupted download can go on where it stopped."""
    context = context_of(request)
    artifact = find_artifact(await find_job(context, job_id), name)
    headers = file_headers(artifact)
    if not_modified(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    wanted = requested_range(request, artifact.size, headers["ETag"])
    start, end = wanted or (0, artifact.size)
    headers["Content-Length"] = str(end - start)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{artifact.size}"
    status = 206 if wanted else 200
    if request.scope["head"]:
        return Response(None, status, headers, artifact.media_type)
    return StreamingResponse(context.blobs.stream(artifact.sha256, start, end), status, headers, artifact.media_type)


def find_artifact(job: JobRecord, name: str) -> ArtifactRecord:
    """Raises ``NotFound``, naming what there is."""
    for artifact in job.artifacts:
        if artifact.name == name:
            return artifact
    there_are = ", ".join(artifact.name for artifact in job.artifacts) or "none"
    raise NotFound(f"{job.id} has no artifact {name!r}. Its artifacts: {there_are}.")


def described(job: JobRecord, artifact: ArtifactRecord) -> Artifact:
    return Artifact(**artifact.model_dump(), url=f"/jobs/{job.id}/artifacts/{quote(artifact.name)}")


def file_headers(artifact: ArtifactRecord) -> dict[str, str]:
    digest = b64encode(bytes.fromhex(artifact.sha256)).decode()
    return {
        "ETag": f'"sha256-{artifact.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(artifact.name, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
