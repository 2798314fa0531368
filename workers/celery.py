"""The worker's Celery app, which ``python -m workers`` starts.

Celery carries ids only. ``workers.process`` holds the process's state, ``workers.supervisor`` runs a job. This process
never imports torch.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog
from celery import Celery, bootsteps, signals

from store.queue import configure
from store.settings import StoreSettings
from store.startup import exit_unless_ready
from workers import logs, process
from workers.typed_celery import receiver

log = structlog.get_logger()

WAKE_EVERY_S = 0.02

app = configure(Celery("fewbit", include=["workers.tasks"]), StoreSettings())
app.conf.update(
    # While Redis is away, keep the running job and keep reconnecting.
    broker_connection_retry=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
)


class WakeUp(bootsteps.StartStopStep):  # type: ignore[misc]
    """Wakes the event loop, so that it takes the next message soon after a task. The pool's thread reports the end of a
    task without waking the loop, which would sleep on for up to a second, half a second on average."""

    requires = ("celery.worker.components:Hub",)

    def register_with_event_loop(self, _worker: Any, hub: Any) -> None:
        hub.call_repeatedly(WAKE_EVERY_S, _do_nothing)


def _do_nothing() -> None:
    """The timer alone wakes the loop."""


app.steps["worker"].add(WakeUp)


@receiver(signals.setup_logging)
def _log_json(loglevel: int | str | None = None, **_: Any) -> None:
    logs.configure(loglevel if isinstance(loglevel, int) else logging.INFO)


@receiver(signals.worker_init)
def _warm_up(**_: Any) -> None:
    """Runs before the first message: a worker that cannot load its engine must not take any.

    Celery logs an exception of a signal's receiver and goes on; only a ``SystemExit`` stops it.
    """
    try:
        with exit_unless_ready("The worker"):
            process.start()
    except Exception as error:
        log.exception("the worker did not start")
        raise SystemExit(1) from error


@receiver(signals.worker_ready)
def _announce(sender: Any, **_: Any) -> None:
    process.current().serve(queues=sorted(sender.app.amqp.queues.consume_from))


@receiver(signals.worker_shutting_down)
def _requeue_running_job(**_: Any) -> None:
    """On SIGTERM the running job goes back into its queue, for another worker."""
    process.current().stopping.set()


@receiver(signals.worker_shutdown)
def _stop(**_: Any) -> None:
    process.current().stop()
