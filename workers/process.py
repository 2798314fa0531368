"""The state of one worker process: its connections, its fork server, and its threads beside Celery's."""

from __future__ import annotations

import threading

import structlog

from fewbit.contract import capabilities
from store.blobs.blob_store import Blobs
from store.blobs.references import References
from store.clients import connect
from store.fleet import Announcer
from store.jobs.leases import Leases
from store.models import InspectedModels
from store.queue import Queue
from store.settings import StoreSettings
from workers import machine
from workers.inspection import Inspector
from workers.reaper import Reaper
from workers.sandbox import fence
from workers.sandbox.fork_server import ForkServer
from workers.scratch import wipe_abandoned_folders
from workers.settings import WorkerSettings
from workers.startup import require_engine, require_environment, require_surroundings
from workers.supervisor import Supervisor

log = structlog.get_logger()

_ANNOUNCE_EVERY_S = 5.0


class Process:
    """Created once per worker process, by ``start``."""

    def __init__(self, store: StoreSettings, settings: WorkerSettings) -> None:
        redis, blobs, queue = connect(store), Blobs.of(store), Queue(store)
        leases, models = Leases(redis, store), InspectedModels(redis, store)
        references = References(redis, blobs, store.lease_s)
        self.stopping = threading.Event()
        self.forks = ForkServer()
        self.supervisor = Supervisor(leases, blobs, references, self.forks, settings, queue.deliver_job, self.stopping)
        self.inspector = Inspector(
            models, blobs, self.forks, settings, store.inspect_s, queue.deliver_inspection, self.stopping
        )
        self._reaper = Reaper(leases, models, references, queue, store.reaper_s)
        self._announcer = Announcer(redis)
        self._settings = settings
        self._leaving = threading.Event()

    def serve(self, queues: list[str]) -> None:
        """Start announcing this worker and looking for lost jobs."""
        self._reaper.start()
        threading.Thread(target=self._announce, args=[queues], name="announce", daemon=True).start()

    def stop(self) -> None:
        """Stop the fork server and all threads."""
        self.stopping.set()
        self._leaving.set()
        self._reaper.stop()
        self.forks.stop()
        try:
            self._announcer.leave(self._settings.worker)
        except Exception:  # Redis may be gone already; the announcement expires by itself
            log.info("could not withdraw the announcement")

    def _announce(self, queues: list[str]) -> None:
        about = description(queues, self._settings)
        while True:
            try:
                self._announcer.announce(self._settings.worker, about)
            except Exception:  # Redis is away; the next announcement may reach it
                log.warning("could not announce", exc_info=True)
            if self._leaving.wait(_ANNOUNCE_EVERY_S):
                return


def description(queues: list[str], settings: WorkerSettings) -> dict[str, object]:
    """What ``GET /capabilities`` shows of this worker."""
    return {
        "queues": queues,
        "cpu": machine.cpu_name(),
        "isa": machine.isa(),
        "threads": settings.threads,
        "versions": machine.versions(),
        "sandbox": sandbox_support(settings),
        "capabilities": {
            "formats": capabilities.FORMATS,
            "methods": capabilities.METHODS,
            "artifacts": capabilities.ARTIFACT_KINDS,
        },
    }


def sandbox_support(settings: WorkerSettings) -> dict[str, object]:
    """How far models are confined on this machine, and what the kernel lacks."""
    kernel = fence.support()
    return {
        "mode": settings.sandbox,
        "landlock": kernel.landlock,
        "seccomp": kernel.seccomp,
        "missing": kernel.missing,
    }


_current: Process | None = None


def start() -> None:
    """Create this process's ``Process`` and start its fork server. Raises ``NotReady`` when something is missing.

    A worker without an engine, or without the fence that it is required to have, must not take a message.
    """
    global _current  # noqa: PLW0603  # one worker, one process: Celery's signals and tasks have nowhere else to look
    store, settings = require_environment()
    require_surroundings(store, settings)
    if missing := fence.support().missing:
        log.warning("the sandbox is incomplete", missing=missing, mode=settings.sandbox)
    wipe_abandoned_folders(settings.scratch)
    _current = Process(store, settings)
    require_engine(_current.forks)


def current() -> Process:
    """The ``Process`` that ``start`` created."""
    if _current is None:
        raise RuntimeError("the worker has not been started")
    return _current
