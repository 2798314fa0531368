"""The thread that finds what was lost: jobs of vanished workers, messages nobody received, bytes nobody refers to.

Every worker runs one. They need no coordination: one script in the store decides who may requeue a job, and delivering
a job twice is harmless, because only the first claim counts.
"""

from __future__ import annotations

import threading
import time

import structlog

from store.blobs.references import References
from store.jobs.leases import Leases
from store.models import InspectedModels
from store.outage import is_outage
from store.queue import BrokerAway, Queue

log = structlog.get_logger()


class Reaper:
    """``start`` it once; it ends with the process, or on ``stop``."""

    def __init__(
        self, leases: Leases, models: InspectedModels, references: References, queue: Queue, every_s: float
    ) -> None:
        self._leases = leases
        self._models = models
        self._references = references
        self._queue = queue
        self._every_s = every_s
        self._stopping = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="reaper", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def sweep(self) -> None:
        """Look once: deliver lost jobs and inspections again, and drop references that were held too long."""
        for lost in self._leases.reap():
            self._queue.deliver_job(lost.job_id, lost.model_bytes)
            log.warning("job delivered again", job=lost.job_id)
        for model_id in self._models.overdue(time.time()):
            self._queue.deliver_inspection(model_id)
            log.warning("inspection delivered again", model=model_id)
        for holder in self._references.sweep():
            log.warning("held for too long", holder=holder)

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self.sweep()
            except Exception as error:
                if isinstance(error, BrokerAway) or is_outage(error):  # what is lost can wait until it is back
                    log.warning("Redis is away; the next sweep comes", error=str(error))
                else:
                    log.exception("sweep failed")
