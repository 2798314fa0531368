"""What a worker looks at before it takes a message. Only the standard library is imported at once (``store.startup``),
and torch never: the fork server says itself what its imports lack."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from store.startup import (
    NotReady,
    require_all,
    require_blobs,
    require_folder,
    require_imports,
    require_redis,
    settings_of,
)  # fmt: skip

if TYPE_CHECKING:
    from store.settings import StoreSettings
    from workers.sandbox.fork_server import ForkServer
    from workers.settings import WorkerSettings

_LOCK = "worker.lock"


def require_environment() -> tuple[StoreSettings, WorkerSettings]:
    """All that the supervising process imports, and the settings. Raises ``NotReady``."""
    require_imports(("store.settings", "workers.settings"), _LOCK)
    from store.settings import StoreSettings
    from workers.settings import WorkerSettings

    settings = settings_of(StoreSettings), settings_of(WorkerSettings)
    require_imports(("celery.bin.worker", "workers.tasks"), _LOCK)
    return settings


def require_surroundings(store: StoreSettings, settings: WorkerSettings) -> None:
    """The sandbox, the scratch folder, blobs, Redis with its broker. Raises ``NotReady`` with all that is missing."""
    require_all(
        (
            partial(_require_sandbox, settings),
            partial(require_folder, settings.scratch, "FEWBIT_SCRATCH"),
            partial(require_blobs, store),
            partial(require_redis, store),
        )
    )


def require_engine(forks: ForkServer) -> None:
    """The fork server starts: it has torch and the engine, and has converted a model. Raises ``NotReady``."""
    from workers.sandbox.fork_server import ForkServerLost

    try:
        forks.start()
    except ForkServerLost as error:
        raise NotReady(
            f"the engine does not start ({error}). The environment {sys.prefix} is not whole: install what "
            f"requirements/{_LOCK} and requirements/torch.lock name, or build the image anew. More is in the log above."
        ) from error


def require_queues(names: str) -> str:
    """The names of queues, separated by commas. Raises ``NotReady`` if one is none of ours."""
    require_imports(("redis", "store.queue"), _LOCK)  # kombu makes do without redis until a message comes
    from store.queue import INSPECT, LARGE, SMALL

    known = (SMALL, LARGE, INSPECT)
    if not names or set(names.split(",")) - set(known):
        raise NotReady(f"{names!r} are no queues. Set FEWBIT_QUEUES to some of {','.join(known)}.")
    return names


def _require_sandbox(settings: WorkerSettings) -> None:
    from workers.sandbox import fence

    there = fence.support()
    if settings.sandbox == "required" and not there.sufficient:
        raise NotReady(
            f"this kernel lacks {'; '.join(there.missing)}. Take one that has Landlock and seccomp, and let the "
            "container use them; or set FEWBIT_SANDBOX=best-effort, for models you trust."
        )
