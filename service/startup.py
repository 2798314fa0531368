"""What the gateway looks at before it listens. Only the standard library is imported at once (``store.startup``)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from store.startup import NotReady, require_all, require_blobs, require_imports, require_redis, settings_of

if TYPE_CHECKING:
    from service.settings import ServiceSettings
    from store.settings import StoreSettings

_LOCK = "gateway.lock"
NO_KEYS = (
    "No API keys. Set FEWBIT_API_KEYS (comma separated; `openssl rand -hex 24` makes one), make one with "
    "`python -m service.keys make`, or set FEWBIT_AUTH=off to let everyone in."
)


def check() -> None:
    """All imports, settings, Redis with its broker, blobs, keys. Raises ``NotReady`` with all that is missing."""
    require_imports(("service.settings", "store.settings"), _LOCK)
    from service.settings import ServiceSettings
    from store.settings import StoreSettings

    settings, store = settings_of(ServiceSettings), settings_of(StoreSettings)
    require_imports(("uvicorn", "uvloop", "service.http.protocol", *modules()), _LOCK)
    require_all((partial(require_redis, store), partial(require_blobs, store), partial(_require_keys, settings, store)))


def modules() -> list[str]:
    """All of the gateway's own, so that none is first imported by a request."""
    root = Path(__file__).parent
    paths = sorted(path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py"))
    return [".".join(path.parts) for path in paths if path.name not in ("__init__", "__main__")]


def _require_keys(settings: ServiceSettings, store: StoreSettings) -> None:
    """Of the environment or in Redis. One that does not answer has none: nobody can tell, so nobody is let in."""
    from redis.exceptions import RedisError

    from store.clients import connect
    from store.tenancy.api_keys import KEYS

    if settings.auth == "off" or settings.key_digests:
        return
    try:
        with connect(store) as client:
            known = bool(client.exists(KEYS))
    except (RedisError, ValueError):
        known = False
    if not known:
        raise NotReady(NO_KEYS)
