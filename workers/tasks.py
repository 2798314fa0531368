"""The two messages that a worker receives: run a job, inspect a model."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from workers import process
from workers.celery import app
from workers.supervisor import NOT_OURS
from workers.typed_celery import task

log = structlog.get_logger()


@task(app, "fewbit.run_job")
def run_job(job_id: str) -> None:
    """Run the job whose turn it is, which may be another one than the message names.

    Workers that ask at the same time are given the same job, and only one can claim it. The others ask again: they have
    used up their message, and the next job in the queue may have no other.
    """
    supervisor, previous_turn = process.current().supervisor, None
    while (turn := supervisor.leases.turn(job_id)) != previous_turn:
        if _run_logged(supervisor.run, job=turn) != NOT_OURS:
            return
        previous_turn = turn


@task(app, "fewbit.inspect_model")
def inspect_model(model_id: str) -> None:
    """Inspect one upload."""
    _run_logged(process.current().inspector.run, model=model_id)


def _run_logged(run: Callable[[str], str], **named_id: str) -> str:
    """``run`` the id, and return how it ended. Everything logged meanwhile carries the id."""
    with structlog.contextvars.bound_contextvars(**named_id):
        started = time.monotonic()
        log.info("started")
        ended = run(next(iter(named_id.values())))
        log.info("ended", ended=ended, seconds=round(time.monotonic() - started, 3))
    return ended
