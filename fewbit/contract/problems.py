"""The problems: the closed set of slugs, what they mean, and what to do about them.

``PROBLEMS`` is the whole list. A slug is the last segment of ``type`` in an ``application/problem+json`` answer
(RFC 9457) and the page ``/problems/{slug}``. The ones in ``JOB_PROBLEMS`` also end jobs and reject models.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class ProblemKind:
    """One entry of the catalogue. ``remedy`` is the page's advice."""

    slug: str
    status: int
    title: str
    remedy: str
    retryable: bool = False


class FieldError(BaseModel):
    """One field at fault: a JSON pointer into the request, a code and a message."""

    model_config = ConfigDict(frozen=True)

    pointer: str
    code: str
    message: str


class Problem(BaseModel):
    """The body of every error answer."""

    model_config = ConfigDict(frozen=True)

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: tuple[FieldError, ...] = ()


class JobProblem(BaseModel):
    """How a job failed, or why a model was rejected."""

    model_config = ConfigDict(frozen=True)

    type: str
    title: str
    detail: str
    retryable: bool

    @classmethod
    def of(cls, slug: str, detail: str) -> JobProblem:
        """The problem ``slug`` of the catalogue with its own ``detail``. Raises ``KeyError`` for an unknown slug."""
        kind = PROBLEMS[slug]
        return cls(type=f"/problems/{slug}", title=kind.title, detail=detail, retryable=kind.retryable)

    @property
    def slug(self) -> str:
        return self.type.rsplit("/", 1)[-1]


_REQUEST_PROBLEMS = (
    ProblemKind("malformed-request", 400, "The request could not be read",
                "The detail says where reading stopped. Send well-formed JSON, or the file's bytes unchanged."),
    ProblemKind("upload-interrupted", 400, "The upload stopped before its end",
                "Nothing was kept. Send the whole file again.", retryable=True),
    ProblemKind("unauthorized", 401, "No valid API key",
                "Send `Authorization: Bearer <key>`. `make up` prints a key; operators set FEWBIT_API_KEYS."),
    ProblemKind("forbidden", 403, "The API key may not do this",
                "Use a key with the scope the detail names; `python -m service.keys make` makes one."),
    ProblemKind("not-found", 404, "There is nothing here",
                "Check the id. Deleted resources and those of other tenants give the same answer."),
    ProblemKind("method-not-allowed", 405, "This path does not take that method",
                "The `Allow` header lists the methods it takes."),
    ProblemKind("not-acceptable", 406, "None of the accepted media types is available",
                "Ask for one that the detail names; application/json nearly always works."),
    ProblemKind("request-timeout", 408, "The request did not come in time",
                "Nothing was kept. Send it again, over a stable connection.", retryable=True),
    ProblemKind("idempotency-in-progress", 409, "The first request with this Idempotency-Key is still running",
                "Wait for it, then repeat the request to get the same answer.", retryable=True),
    ProblemKind("model-not-ready", 409, "The model is still being inspected",
                "Poll `GET /models/{id}` until `status` is `ready`, then post the job.", retryable=True),
    ProblemKind("in-use", 409, "Something unfinished still needs this",
                "Wait until the jobs that use it have ended, or cancel them."),
    ProblemKind("job-final", 409, "The job has already ended",
                "A job that has ended cannot be canceled; delete it instead."),
    ProblemKind("job-not-final", 409, "The job has not ended yet",
                "Wait for it, or cancel it first."),
    ProblemKind("job-failed", 409, "The job failed, so it has no report",
                "`job.error` says what went wrong and whether the same job is worth posting again."),
    ProblemKind("job-canceled", 409, "The job was canceled, so it has no report",
                "Post the job again to run it."),
    ProblemKind("payload-too-large", 413, "The body is larger than this service takes",
                "`GET /capabilities` lists the limits."),
    ProblemKind("uri-too-long", 414, "The path or query is too long",
                "Take links and cursors from the service's answers; they fit."),
    ProblemKind("unsupported-media-type", 415, "This content type is not taken here",
                "Send a file as application/octet-stream or multipart/form-data, a job as application/json."),
    ProblemKind("range-not-satisfiable", 416, "The requested range lies outside the file",
                "The `Content-Range` header gives the file's size."),
    ProblemKind("misdirected-request", 421, "This service does not answer for that host",
                "Use an address the operator has named in FEWBIT_HOSTS."),
    ProblemKind("invalid-request", 422, "The request cannot work as it is",
                "`errors` names each field at fault by JSON pointer, with what it should be."),
    ProblemKind("digest-mismatch", 422, "The bytes received are not the ones announced",
                "Nothing was kept. Compute SHA-256 over the bytes you send, and send them again.", retryable=True),
    ProblemKind("invalid-dataset", 422, "The dataset cannot be used",
                "Save named arrays of equal length with numpy.savez(path, x=..., labels=...): numbers only, no NaN."),
    ProblemKind("idempotency-key-reused", 422, "This Idempotency-Key was used for a different request",
                "Use a fresh key for each distinct request."),
    ProblemKind("quota-exceeded", 429, "Your tenant has used up this quota",
                "`quota` names it, `used` and `limit` say how much; the detail says how to free some."),
    ProblemKind("rate-limited", 429, "Too many requests",
                "Wait for as long as `Retry-After` says.", retryable=True),
    ProblemKind("headers-too-large", 431, "The request's headers are too many or too large",
                "Send only the headers the API documentation names."),
    ProblemKind("service-error", 500, "Something failed in the service",
                "Report the `request_id`. Repeating the request is safe with an Idempotency-Key.", retryable=True),
    ProblemKind("service-unavailable", 503, "A part the service needs does not answer",
                "Try again after `Retry-After` seconds. `GET /health/ready` names the part.", retryable=True),
)  # fmt: skip

_JOB_PROBLEMS = (
    ProblemKind("unsafe-model", 422, "The upload contains code that would run when it is loaded",
                "Export the model again with torch.export.save, from a clean session. Nothing was executed."),
    ProblemKind("invalid-model", 422, "The upload is not a model this service can read",
                "Export with `torch.export.save(torch.export.export(model.eval(), example_inputs), 'model.pt2')`."),
    ProblemKind("export-failed", 422, "The model could not be turned into an exported program",
                "Export it yourself with torch.export and upload the .pt2."),
    ProblemKind("calibration-failed", 422, "Running the model on the calibration data failed",
                "The detail names the batch. Run the float model on it first."),
    ProblemKind("quantization-failed", 500, "Quantizing the model failed",
                "Exclude the layer the detail names with `layers: [{match, quantize: false}]`."),
    ProblemKind("verification-failed", 500, "A finished artifact did not behave as measured, so it was not delivered",
                "Ask for another artifact kind, or exclude the layer the detail names."),
    ProblemKind("out-of-memory", 507, "The job needed more memory than its worker has",
                "Use a smaller evaluation.batch_size, or a worker with more memory.", retryable=True),
    ProblemKind("time-limit-exceeded", 504, "The job ran into its time limit",
                "Raise `time_limit_s`, or evaluate fewer samples."),
    ProblemKind("sandbox-violation", 422, "The model tried to leave its sandbox",
                "The detail names the call or path. Export a model that only computes."),
    ProblemKind("worker-lost", 500, "The workers running this job disappeared, and no attempt is left",
                "Post the job again. If it happens again, look at the worker's log.", retryable=True),
    ProblemKind("internal-error", 500, "The engine failed unexpectedly",
                "Report the job id. The detail holds the engine's error message.", retryable=True),
)  # fmt: skip

PROBLEMS: dict[str, ProblemKind] = {kind.slug: kind for kind in (*_REQUEST_PROBLEMS, *_JOB_PROBLEMS)}
JOB_PROBLEMS: frozenset[str] = frozenset(kind.slug for kind in _JOB_PROBLEMS)
