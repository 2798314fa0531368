"""When to try again: back-off with full jitter (AWS architecture blog, 2015), or what ``Retry-After`` asks for."""

from __future__ import annotations

import logging

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential
from tenacity.stop import stop_base

from fewbit.errors import FewbitError

log = logging.getLogger("fewbit")

_BACKOFF = wait_random_exponential(multiplier=0.2, max=8.0, min=0.05)


def retrying(patience_s: float) -> Retrying:
    """Calls a function until it returns, or until its problems have lasted for ``patience_s`` seconds. Only
    temporary problems are retried. Make a new one for every call."""

    def announce(state: RetryCallState) -> None:
        if state.attempt_number == 1:
            log.warning("%s Trying again for up to %.0f s.", _problem(state).problem.detail, patience_s)

    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, FewbitError) and error.may_pass),
        wait=lambda state: max(_BACKOFF(state), _problem(state).retry_after or 0.0),
        stop=_StopAfterFirstProblem(patience_s),
        before_sleep=announce,
        reraise=True,
    )


class _StopAfterFirstProblem(stop_base):
    """Counts from the first problem: an upload that took long before it broke off is worth another attempt."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = 0.0

    def __call__(self, state: RetryCallState) -> bool:
        failed_at = state.outcome_timestamp or state.start_time
        if state.attempt_number == 1:
            self._deadline = failed_at + self._seconds
        return failed_at + state.upcoming_sleep > self._deadline


def _problem(state: RetryCallState) -> FewbitError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, FewbitError)  # nothing else is retried
    return error
