"""What the client raises.

Exception
└── FewbitError     a problem: what is wrong, where, and what to do about it
"""

from __future__ import annotations

from typing import Any, Self

import httpx2
from pydantic import ValidationError

from fewbit.contract.problems import PROBLEMS, FieldError, JobProblem, Problem

_TEMPORARY = frozenset({"model-not-ready", "idempotency-in-progress", "rate-limited", "service-unavailable"})


class FewbitError(Exception):
    """The service refused or did not answer, or a job or model ended in a problem. ``str()`` is for people."""

    def __init__(
        self,
        problem: Problem | JobProblem,
        *,
        where: str = "",
        remedy: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(problem, where)
        self.problem = problem
        self.slug = problem.type.rsplit("/", 1)[-1]
        self.where = where
        self.retry_after = retry_after
        kind = PROBLEMS.get(self.slug)
        self.remedy = remedy or (kind.remedy if kind else "")

    @classmethod
    def of(cls, slug: str, detail: str, *, where: str = "", remedy: str | None = None) -> Self:
        """A problem that the client found itself, with the catalogue's title."""
        kind = PROBLEMS[slug]
        problem = Problem(type=f"/problems/{slug}", title=kind.title, status=kind.status, detail=detail, request_id="")
        return cls(problem, where=where, remedy=remedy)

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later, unchanged."""
        return self.slug in _TEMPORARY

    def __str__(self) -> str:
        fields: tuple[FieldError, ...] = getattr(self.problem, "errors", ())
        lines = [f"{self.problem.title}.", self.problem.detail]
        lines += [self._field(error) for error in fields if error.pointer or error.message not in self.problem.detail]
        lines += [f"Where: {self.where}"] if self.where else []
        lines += [f"What to do: {self.remedy}"] if self.remedy else []
        return "\n".join(line for line in lines if line)

    def _field(self, error: FieldError) -> str:
        message = "" if error.message in self.problem.detail else f": {error.message}"
        return f"  at {error.pointer or '/'}{message} ({error.code})"


def from_response(response: httpx2.Response) -> FewbitError:
    """The problem in an answer. For a failed job, the problem the job failed with."""
    where = f"{response.request.method} {response.request.url.path}"
    try:
        body: dict[str, Any] = response.json()
        problem = Problem.model_validate(body)
    except (ValueError, ValidationError):
        return FewbitError(_unknown_answer(response), where=where)
    if error := (body.get("job") or {}).get("error"):
        return FewbitError(JobProblem.model_validate(error), where=where)
    request_note = f" (request {problem.request_id})" if problem.request_id else ""
    return FewbitError(problem, where=where + request_note, retry_after=retry_after(response))


def retry_after(response: httpx2.Response) -> float | None:
    """The seconds that the service asks to wait, if it does."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def unreachable(url: httpx2.URL, error: Exception) -> FewbitError:
    """The problem for a request without an answer."""
    detail = f"{url} does not answer: {error or type(error).__name__}."
    remedy = "Check the address (FEWBIT_URL, --url) and that the service runs: `make up` starts one on this machine."
    return FewbitError.of("service-unavailable", detail, remedy=remedy)


def _unknown_answer(response: httpx2.Response) -> Problem:
    """An error answer without problem+json comes from a proxy, or from a service that is not Fewbit."""
    slug = "service-unavailable" if response.status_code in (502, 503, 504) else "about:blank"
    return Problem(
        type=f"/problems/{slug}",
        title=f"{response.status_code} {response.reason_phrase}, but not from Fewbit",
        status=response.status_code,
        detail=response.text[:300].strip(),
        request_id=response.headers.get("X-Request-Id", ""),
    )
