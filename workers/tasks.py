"""The two messages a worker receives."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from workers import process
from workers.celery import app
from workers.supervisor import NOT_OURS

log = structlog.get_logger()


@app.task(name="fewbit.run_job", ignore_result=True)  # type: ignore[untyped-decorator]  # Celery is not typed
def run_job(job_id: str) -> None:
    """Run a job to its end: the one whose turn it is, which need not be the one the message names.

    Workers that ask at the same time are told the same job. Only one gets it; another asks again, for its message is
    spent, and the next in line may have no other.
    """
    supervisor, tried = process.current().supervisor, None
    while (turn := supervisor.leases.turn(job_id)) != tried:
        if _logged(supervisor.run, job=turn) != NOT_OURS:
            return
        tried = turn


@app.task(name="fewbit.inspect_model", ignore_result=True)  # type: ignore[untyped-decorator]
def inspect_model(model_id: str) -> None:
    """Inspect one upload."""
    _logged(process.current().inspector.run, model=model_id)


def _logged(story: Callable[[str], str], **named: str) -> str:
    """What the story returns. Everything that is logged meanwhile carries the id."""
    with structlog.contextvars.bound_contextvars(**named):
        started = time.monotonic()
        log.info("started")
        ended = story(next(iter(named.values())))
        log.info("ended", ended=ended, seconds=round(time.monotonic() - started, 3))
    return ended
