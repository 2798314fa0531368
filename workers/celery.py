"""The worker's Celery app, which ``python -m workers`` starts.

Celery brings ids, nothing else. What the process holds lives in ``workers.process``; what a job goes through is in
``workers.supervisor``. This process never imports torch.
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

log = structlog.get_logger()

AWAKE_EVERY_S = 0.02

app = configure(Celery("fewbit", include=["workers.tasks"]), StoreSettings())
app.conf.update(
    # Redis away for a while: keep the running job, and keep trying to come back.
    broker_connection_retry=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
)


class Awake(bootsteps.StartStopStep):  # type: ignore[misc]
    """Looks for the next message soon after the last one is done. That is reported from the pool's thread, which does
    not wake the event loop: it would sleep on, for a second at most, half a second on average."""

    requires = ("celery.worker.components:Hub",)

    def register_with_event_loop(self, _worker: Any, hub: Any) -> None:
        hub.call_repeatedly(AWAKE_EVERY_S, _nothing)


def _nothing() -> None:
    """A timer is enough."""


app.steps["worker"].add(Awake)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _log_json(loglevel: int | str | None = None, **_: Any) -> None:
    logs.configure(loglevel if isinstance(loglevel, int) else logging.INFO)


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _warm_up(**_: Any) -> None:
    """Before the first message is taken: a worker that cannot load its engine must not take any. Celery logs what a
    signal's receiver raises, and goes on; it does not stop a ``SystemExit``."""
    try:
        with exit_unless_ready("The worker"):
            process.start()
    except Exception as error:
        log.exception("the worker did not start")
        raise SystemExit(1) from error


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _announce(sender: Any, **_: Any) -> None:
    process.current().serve(queues=sorted(sender.app.amqp.queues.consume_from))


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _hand_back(**_: Any) -> None:
    """SIGTERM: the running job goes back into its queue, another worker takes it."""
    process.current().stopping.set()


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _leave(**_: Any) -> None:
    process.current().stop()
