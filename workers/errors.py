"""The engine's one exception, with a slug from a closed set."""

from __future__ import annotations

from fewbit.contract.problems import JOB_PROBLEMS, JobProblem


class EngineError(Exception):
    """The job cannot go on. ``slug`` names the problem; ``detail`` is for the person who posted the job.

    Raises ``ValueError`` for a slug that is not one of ``fewbit.contract.problems.JOB_PROBLEMS``.
    """

    def __init__(self, slug: str, detail: str) -> None:
        if slug not in JOB_PROBLEMS:
            raise ValueError(f"{slug!r} is not a problem a job can end in")
        super().__init__(f"{slug}: {detail}")
        self.slug = slug
        self.detail = detail

    @property
    def problem(self) -> JobProblem:
        return JobProblem.of(self.slug, self.detail)


def first_line(error: Exception) -> str:
    """The first line of ``error``'s message, at most 300 characters; its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
