"""Every error the gateway answers with: one class for each, one renderer for all (RFC 9457).

Exception
└── Refusal                        an answer in ``application/problem+json``
    ├── MalformedRequest           400
    ├── UploadInterrupted          400
    ├── Unauthorized               401
    ├── Forbidden                  403
    ├── NotFound                   404
    ├── MethodNotAllowed           405
    ├── NotAcceptable              406
    ├── TooSlow                    408
    ├── IdempotencyInProgress      409
    ├── ModelNotReady              409
    ├── InUse                      409
    ├── JobFinal                   409
    ├── JobNotFinal                409
    ├── NoReport                   409   job-failed, job-canceled
    ├── PayloadTooLarge            413
    ├── UriTooLong                 414
    ├── UnsupportedMediaType       415
    │   └── NotByReference         415
    ├── RangeNotSatisfiable        416
    ├── Misdirected                421
    ├── InvalidRequest             422   names the fields at fault
    │   ├── InvalidDataset         422
    │   └── UnusableModel          422   invalid-model, or whatever the model was rejected for
    ├── DigestMismatch             422
    ├── IdempotencyKeyReused       422
    ├── QuotaExceeded              429   which one, how much, how to free it
    ├── RateLimited                429
    │   └── TooManyOpen            429
    ├── HeadersTooLarge            431
    ├── ServiceError               500
    └── ServiceUnavailable         503
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from json import loads
from typing import Any, ClassVar

from starlette.responses import JSONResponse, Response

from fewbit.contract.problems import PROBLEMS, FieldError, JobProblem, Problem, ProblemKind

MEDIA_TYPE = "application/problem+json"


class Refusal(Exception):
    """``slug`` names an entry of the catalogue; ``detail`` says it in this case's words."""

    slug: ClassVar[str]

    def __init__(
        self,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.more = dict(more or {})

    @property
    def kind(self) -> ProblemKind:
        return PROBLEMS[self.slug]

    def render(self, request_id: str) -> Response:
        """The answer; ``more`` are members of its own beside those every problem has."""
        kind = self.kind
        problem = Problem(
            type=f"/problems/{kind.slug}",
            title=kind.title,
            status=kind.status,
            detail=self.detail,
            request_id=request_id,
            errors=self.errors,
        )
        body = problem.model_dump(mode="json", exclude=None if self.errors else {"errors"})
        return JSONResponse(body | self.more, kind.status, self.headers, MEDIA_TYPE)


class MalformedRequest(Refusal):
    slug = "malformed-request"


class UploadInterrupted(Refusal):
    slug = "upload-interrupted"


class Unauthorized(Refusal):
    slug = "unauthorized"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(Refusal):
    slug = "forbidden"

    def __init__(self, given: str, needed: str) -> None:
        challenge = f'Bearer error="insufficient_scope", scope="{needed}"'  # RFC 6750, 3.1
        super().__init__(
            f"This takes a key of scope {needed}; yours has {given}.", headers={"WWW-Authenticate": challenge}
        )


class NotFound(Refusal):
    slug = "not-found"


class MethodNotAllowed(Refusal):
    slug = "method-not-allowed"

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        allow = ", ".join(allowed)
        super().__init__(f"This path takes {allow}, not {method}.", headers={"Allow": allow})


class NotAcceptable(Refusal):
    slug = "not-acceptable"

    def __init__(self, *available: str) -> None:
        super().__init__(f"This is available as {' or '.join(available)}.")


class TooSlow(Refusal):
    """The connection ends with it: what is left of the body would be taken for the next request."""

    slug = "request-timeout"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Connection": "close"})


class UriTooLong(Refusal):
    slug = "uri-too-long"

    def __init__(self, part: str, limit: int) -> None:
        super().__init__(f"The {part} has more than {limit} bytes.")


class Misdirected(Refusal):
    slug = "misdirected-request"

    def __init__(self) -> None:
        super().__init__("The Host header names no host that this service answers for.")


class HeadersTooLarge(Refusal):
    slug = "headers-too-large"

    def __init__(self, count: int, size: int) -> None:
        super().__init__(f"At most {count} headers of {size} bytes in all are taken.")


class IdempotencyInProgress(Refusal):
    slug = "idempotency-in-progress"

    def __init__(self) -> None:
        super().__init__("The first request with this Idempotency-Key has no answer yet.", headers={"Retry-After": "1"})


class ModelNotReady(Refusal):
    slug = "model-not-ready"

    def __init__(self, model_id: str) -> None:
        super().__init__(f"The inspection of {model_id} has not ended yet.", headers={"Retry-After": "5"})


class InUse(Refusal):
    slug = "in-use"


class JobFinal(Refusal):
    slug = "job-final"

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(f"{job_id} is {status}.")


class JobNotFinal(Refusal):
    slug = "job-not-final"

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(f"{job_id} is {status}.", headers={"Retry-After": "1"})


class NoReport(Refusal):
    """The job ended without a report. It goes along as ``job``, and its own problem as ``error`` too."""

    def __init__(self, job_id: str, status: str, error_json: bytes) -> None:
        error = loads(error_json)
        detail = f"{job_id} was canceled." if status == "canceled" else f"{job_id}: {error['detail']}"
        super().__init__(detail, more={"job": {"id": job_id, "status": status, "error": error}, "error": error})
        self.slug = f"job-{status}"  # type: ignore[misc]  # the one class with two entries in the catalogue


class PayloadTooLarge(Refusal):
    slug = "payload-too-large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"At most {limit} bytes are taken here.")


class UnsupportedMediaType(Refusal):
    slug = "unsupported-media-type"

    def __init__(self, given: str, taken: Sequence[str]) -> None:
        super().__init__(f"This takes {' or '.join(taken)}, not {given or 'a body without a Content-Type'}.")


class NotByReference(UnsupportedMediaType):
    def __init__(self, taken: Sequence[str]) -> None:
        super().__init__("application/json", taken)
        what = 'A body that names an upload, {"upload": id}, is not part of this release'
        self.detail = f"{what}. Send the file itself, as {' or '.join(taken)}."


class RangeNotSatisfiable(Refusal):
    slug = "range-not-satisfiable"

    def __init__(self, size: int) -> None:
        headers = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}
        super().__init__(f"The file has {size} bytes.", headers=headers)


class InvalidRequest(Refusal):
    """At least one field cannot be as it is."""

    slug = "invalid-request"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        count = "One field is" if len(errors) == 1 else f"{len(errors)} fields are"
        super().__init__(f"{count} at fault: {'; '.join(error.message for error in errors[:3])}", errors)


class InvalidDataset(InvalidRequest):
    slug = "invalid-dataset"


class UnusableModel(InvalidRequest):
    """The upload, or the model a job names, has a problem of its own."""

    def __init__(self, problem: JobProblem, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(errors)
        self.detail = problem.detail
        self.slug = problem.slug  # type: ignore[misc]  # any problem a model can be rejected for

    @property
    def kind(self) -> ProblemKind:
        """Whatever its status elsewhere: here the request is at fault."""
        kind = PROBLEMS[self.slug]
        return ProblemKind(kind.slug, 422, kind.title, kind.remedy, kind.retryable)


class DigestMismatch(Refusal):
    slug = "digest-mismatch"

    def __init__(self, announced: str) -> None:
        super().__init__(f"Repr-Digest announced SHA-256 {announced}; the bytes received have another.")


class IdempotencyKeyReused(Refusal):
    slug = "idempotency-key-reused"

    def __init__(self) -> None:
        super().__init__("The first request with this key had another path or body.")


class QuotaExceeded(Refusal):
    """``quota`` names what there is too much of."""

    slug = "quota-exceeded"

    def __init__(self, quota: str, limit: int, used: int, remedy: str, retry_after_s: int | None = None) -> None:
        headers = {"Retry-After": str(retry_after_s)} if retry_after_s else {}
        more = {"quota": quota, "limit": limit, "used": used}
        super().__init__(f"{quota}: {used} of {limit} are taken. {remedy}", headers=headers, more=more)

    @classmethod
    def of_bytes(cls, used: int, limit: int) -> QuotaExceeded:
        return cls("bytes-stored", limit, used, "Delete models, datasets or jobs you no longer need.")

    @classmethod
    def of_jobs(cls, limit: int) -> QuotaExceeded:
        return cls("jobs-queued", limit, limit, "Wait until some have started, or cancel some.", retry_after_s=5)

    @classmethod
    def of_webhooks(cls, limit: int) -> QuotaExceeded:
        return cls("webhooks", limit, limit, "Delete one that you no longer need.")


class RateLimited(Refusal):
    slug = "rate-limited"

    def __init__(self, limit: int, retry_after_s: int, headers: Mapping[str, str] | None = None) -> None:
        detail = f"Your tenant may send {limit} requests a minute."
        super().__init__(detail, headers={"Retry-After": str(max(1, retry_after_s)), **(headers or {})})


class TooManyOpen(RateLimited):
    def __init__(self, limit: int) -> None:
        super().__init__(limit, 1)
        self.detail = f"Your tenant may have {limit} requests open at a time at one gateway."


class ServiceError(Refusal):
    slug = "service-error"

    def __init__(self) -> None:
        super().__init__("The request was not completed. The cause is in the service's log under this request_id.")


class ServiceUnavailable(Refusal):
    slug = "service-unavailable"

    def __init__(self, detail: str, **more: Any) -> None:
        super().__init__(detail, headers={"Retry-After": "2"}, more=more)
