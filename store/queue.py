"""The Celery messages: ids, and the queue they go to. One configuration, for sender and receiver.

Early acknowledgement, no prefetch, no results, no countdowns: each was measured to lose or repeat work on a Redis
broker. What must not get lost is in the job record; a message only says "look".
"""

from __future__ import annotations

import celery.app.amqp  # at once, with the next two: Celery and kombu would import them with the first message
import celery.app.task  # noqa: F401
import kombu.transport.redis  # noqa: F401
from celery import Celery
from kombu.entity import Queue as MessageQueue

from store.outage import is_outage
from store.settings import StoreSettings

SMALL, LARGE, INSPECT = "small", "large", "inspect"
RUN_JOB, INSPECT_MODEL = "fewbit.run_job", "fewbit.inspect_model"


def configure(app: Celery, settings: StoreSettings) -> Celery:
    """What both sides must agree on."""
    app.conf.update(
        broker_url=settings.broker_url,
        broker_transport_options={"socket_timeout": 10, "socket_connect_timeout": 5, "retry_on_timeout": True},
        result_backend=None,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        task_queues=[MessageQueue(name) for name in (SMALL, LARGE, INSPECT)],  # type: ignore[no-untyped-call]
        task_default_queue=SMALL,
        task_create_missing_queues=False,
        enable_utc=True,
    )
    return app


def line_of(model_bytes: int, settings: StoreSettings) -> str:
    """The queue a job waits in."""
    return LARGE if model_bytes >= settings.large_model_bytes else SMALL


class BrokerAway(Exception):
    """The message was not sent, for the broker does not answer, or takes nothing more, for now."""


class Queue:
    """Sends messages. Blocking: call it in a thread from async code. Raises ``BrokerAway``, and as it is whatever would
    fail again: a wrong password, a wrong address, a mistake in the code."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._app = configure(Celery("fewbit", set_as_current=False), settings)

    def deliver_job(self, job_id: str, model_bytes: int) -> None:
        """Large models have a queue of their own, so that they never starve small ones."""
        self._send(RUN_JOB, job_id, line_of(model_bytes, self._settings))

    def deliver_inspection(self, model_id: str) -> None:
        self._send(INSPECT_MODEL, model_id, INSPECT)

    def reach(self) -> None:
        """Connect as the first message would. Raises whatever is in the way."""
        with self._app.connection_for_write() as connection:
            connection.connect()

    def _send(self, task: str, named: str, line: str) -> None:
        try:
            self._app.send_task(task, args=[named], queue=line)
        except Exception as error:
            if is_outage(error):
                raise BrokerAway(str(error)) from error
            raise
