"""The checks of a worker before it takes a message.

Only the standard library is imported at once (``store.startup``), and torch never: the fork server reports itself what
its imports lack.
"""

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
    """Check the imports of the supervising process, and return the settings. Raises ``NotReady``."""
    require_imports(("store.settings", "workers.settings"), _LOCK)
    from store.settings import StoreSettings
    from workers.settings import WorkerSettings

    settings = settings_of(StoreSettings), settings_of(WorkerSettings)
    require_imports(("celery.bin.worker", "workers.tasks"), _LOCK)
    return settings


def require_surroundings(store: StoreSettings, settings: WorkerSettings) -> None:
    """Check the sandbox, the scratch folder, blobs, Redis and its broker. Raises ``NotReady`` with all that fails."""
    require_all(
        (
            partial(_require_sandbox, settings),
            partial(require_folder, settings.scratch, "FEWBIT_SCRATCH"),
            partial(require_blobs, store),
            partial(require_redis, store),
        )
    )


def require_engine(forks: ForkServer) -> None:
    """Start the fork server, which loads torch and the engine and converts a model. Raises ``NotReady``."""
    from workers.sandbox.fork_server import ForkServerLost

    try:
        forks.start()
    except ForkServerLost as error:
        raise NotReady(
            f"the engine does not start ({error}). The environment {sys.prefix} is incomplete: install "
            f"requirements/{_LOCK} and requirements/torch.lock, or rebuild the image. The log above has more."
        ) from error


def require_queues(names: str) -> str:
    """The names of queues, separated by commas. Raises ``NotReady`` for an unknown one."""
    require_imports(("redis", "store.queue"), _LOCK)  # kombu notices a missing redis only when a message comes
    from store.queue import INSPECT, LARGE, SMALL

    known = (SMALL, LARGE, INSPECT)
    if not names or set(names.split(",")) - set(known):
        raise NotReady(f"{names!r} does not name queues. Set FEWBIT_QUEUES to some of {','.join(known)}.")
    return names


def _require_sandbox(settings: WorkerSettings) -> None:
    from workers.sandbox import fence

    kernel = fence.support()
    if settings.sandbox == "required" and not kernel.sufficient:
        raise NotReady(
            f"this kernel lacks {'; '.join(kernel.missing)}. Take one that has Landlock and seccomp, and let the "
            "container use them; or set FEWBIT_SANDBOX=best-effort, for models you trust."
        )
