"""How a child ended, and the problem that this means for its job."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from fewbit.contract.problems import JobProblem


@dataclass(frozen=True)
class ChildOutcome:
    """The end of one child.

    ``exit_code`` is minus the signal's number for a child that a signal ended. ``result`` and ``problem`` are its
    last messages, ``output_tail`` is the end of what it printed. ``forbidden_call`` names the system call that got it
    killed; ``refused_call`` one that failed, and may be why the child gave up.
    """

    exit_code: int
    result: dict[str, Any] | None
    problem: JobProblem | None
    output_tail: str
    forbidden_call: str | None = None
    refused_call: str | None = None

    @property
    def failure(self) -> JobProblem | None:
        """Why the child failed; ``None`` if it succeeded."""
        if self.forbidden_call is not None:
            detail = f"The model made the system call {self.forbidden_call}, which its sandbox forbids."
            return JobProblem.of("sandbox-violation", detail)
        if self.exit_code < 0:
            return _signal_problem(-self.exit_code)
        if self.problem is not None:
            return self._with_refused_call(self.problem)
        if self.result is None or self.exit_code != 0:
            return JobProblem.of("internal-error", f"The engine left with code {self.exit_code} and no result.")
        return None

    def _with_refused_call(self, problem: JobProblem) -> JobProblem:
        if problem.slug != "sandbox-violation" or self.refused_call is None:
            return problem
        return JobProblem.of(problem.slug, f"{problem.detail} It made the system call {self.refused_call}.")


def _signal_problem(number: int) -> JobProblem:
    if number == signal.SIGKILL:
        return JobProblem.of(
            "out-of-memory", "The kernel ended the engine with SIGKILL, as it does when the machine is out of memory."
        )
    if number == signal.SIGXCPU:
        return JobProblem.of("time-limit-exceeded", "The engine used more processor time than its job may.")
    if number == signal.SIGXFSZ:
        return JobProblem.of("sandbox-violation", "The model wrote a larger file than a job may (SIGXFSZ).")
    if number == signal.SIGSYS:
        return JobProblem.of("sandbox-violation", "The model made a system call its sandbox does not allow (SIGSYS).")
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    return JobProblem.of("internal-error", f"The engine was ended by signal {name}.")
