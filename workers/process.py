"""What one worker process holds: its connections, its fork server, and the threads beside Celery's."""

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
from workers.scratch import tidy
from workers.settings import WorkerSettings
from workers.startup import require_engine, require_environment, require_surroundings
from workers.supervisor import Supervisor

log = structlog.get_logger()

_ANNOUNCE_EVERY_S = 5.0


class Process:
    """Made once per worker process, by ``start``."""

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
        """From now on be seen, and look after what others lost."""
        self._reaper.start()
        threading.Thread(target=self._announce, args=[queues], name="announce", daemon=True).start()

    def stop(self) -> None:
        """Leave nothing running."""
        self.stopping.set()
        self._leaving.set()
        self._reaper.stop()
        self.forks.stop()
        try:
            self._announcer.leave(self._settings.worker)
        except Exception:  # Redis may have gone before us; the announcement runs out by itself
            log.info("left without saying so")

    def _announce(self, queues: list[str]) -> None:
        about = description(queues, self._settings)
        while True:
            try:
                self._announcer.announce(self._settings.worker, about)
            except Exception:  # Redis is away; it will hear from us when it is back
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
        "sandbox": sandbox(settings),
        "capabilities": {
            "formats": capabilities.FORMATS,
            "methods": capabilities.METHODS,
            "artifacts": capabilities.ARTIFACT_KINDS,
        },
    }


def sandbox(settings: WorkerSettings) -> dict[str, object]:
    """How far models are shut in here, and what this kernel lacks for more."""
    there = fence.support()
    return {
        "mode": settings.sandbox,
        "landlock": there.landlock,
        "seccomp": there.seccomp,
        "missing": there.missing,
    }


_current: Process | None = None


def start() -> None:
    """Make this process's ``Process`` and warm its fork server. Raises ``NotReady`` when it lacks something: a worker
    without an engine, or without the fence it is required to have, must not take a message."""
    global _current  # noqa: PLW0603  # one worker, one process: Celery's signals and tasks have nowhere else to look
    store, settings = require_environment()
    require_surroundings(store, settings)
    if missing := fence.support().missing:
        log.warning("the sandbox is not whole", missing=missing, mode=settings.sandbox)
    tidy(settings.scratch)
    _current = Process(store, settings)
    require_engine(_current.forks)


def current() -> Process:
    """The one made by ``start``."""
    if _current is None:
        raise RuntimeError("the worker has not been started")
    return _current
