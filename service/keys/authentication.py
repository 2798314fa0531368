"""Who is asking, and what may they do? Everything but health, docs, problems and reasons needs a key (RFC 6750).

Keys come from two places: ``FEWBIT_API_KEYS``, which are administrators of the operator's own tenant, and the store
(``python -m service.keys``). A stored key is looked up at most once in ``TRUSTED_S`` seconds by each gateway: a revoked
key opens nothing after that. When a key expires is looked at with every request.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.audit import Tally, Trail
from service.context import ServiceContext
from service.http.envelope import answer_errors
from service.http.problems import Forbidden, RateLimited, TooManyOpen, Unauthorized
from store.tenancy.api_keys import SCOPES, KeyRecord, key_id
from store.tenancy.api_keys import Scope as KeyScope
from store.tenancy.rates import WINDOW_S, Allowance
from store.tenancy.tenants import DEFAULT_TENANT

OPEN = ("/health/", "/docs", "/openapi.json", "/problems", "/reasons")
ADMIN = ("/audit", "/metrics")
SAFE = ("GET", "HEAD")
TRUSTED_S = 1.0
MOST_TRUSTED = 10_000


@dataclass(frozen=True)
class Caller:
    """``user`` is what an ``Idempotency-Key`` belongs to: the same through a rotation, and never the key itself."""

    tenant: str
    key: str
    scope: KeyScope
    user: str

    @property
    def operator(self) -> bool:
        """An administrator of the operator's own tenant sees numbers of all."""
        return self.tenant == DEFAULT_TENANT and self.scope == "admin"

    def may(self, needed: KeyScope) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(needed)


ANYONE = Caller(DEFAULT_TENANT, "anyone", "admin", "anyone")
NO_KEY, UNKNOWN_KEY = "none", "unknown"
"""In the audit log, of the operator's tenant, in place of a key's id."""


@dataclass(frozen=True)
class Suspect:
    """The sender of a key that is not valid, as far as the key's id tells."""

    tenant: str
    key: str


def caller_of(request: HTTPConnection) -> Caller:
    caller: Caller = request.scope["caller"]
    return caller


class KeyAuth:
    """Pure ASGI, so that it costs microseconds. ``digests``: SHA-256 of the keys of the environment; ``None`` lets
    everyone in."""

    def __init__(self, app: ASGIApp, digests: Sequence[bytes] | None) -> None:
        self.app = app
        self.digests = None if digests is None else tuple(digests)
        self._trusted: dict[str, tuple[KeyRecord, float]] = {}
        self._open: dict[str, int] = {}
        self._tally = Tally()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif is_open(scope["path"]):
            scope["caller"] = ANYONE
            await self.app(scope, receive, send)
        else:
            await self._guarded(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ``Unauthorized``, ``RateLimited`` and ``TooManyOpen``. Anyone can cause many of those, so not all are
        written down."""
        context: ServiceContext = scope["app"].state.context
        try:
            caller = scope["caller"] = await self._caller(scope, context)
            allowance = await self._allowance(caller, context)
        except (Unauthorized, RateLimited) as refusal:
            await self._tell(refusal.kind.status, scope, context)
            raise
        watched = Trail(context, scope, caller).watch(_with_rate(send, context.rates.limit, allowance))
        scope["let_in"] = True  # for `service.http.protocol`
        with self._counted(caller.tenant):
            await answer_errors(self._permitted, scope, receive, watched)

    async def _allowance(self, caller: Caller, context: ServiceContext) -> Allowance:
        """Raises ``RateLimited`` and ``TooManyOpen``: one tenant must not take every connection."""
        allowance = await context.rates.take(caller.tenant)
        if not allowance.granted:
            raise RateLimited(context.rates.limit, allowance.seconds, rate_headers(context.rates.limit, allowance))
        if self._open.get(caller.tenant, 0) >= context.settings.max_open_requests:
            raise TooManyOpen(context.settings.max_open_requests)
        return allowance

    async def _permitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ``Forbidden``."""
        caller, needed = scope["caller"], needed_scope(scope)
        if not caller.may(needed):
            raise Forbidden(caller.scope, needed)
        await self.app(scope, receive, send)

    @contextmanager
    def _counted(self, tenant: str) -> Iterator[None]:
        self._open[tenant] = self._open.get(tenant, 0) + 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]

    async def _tell(self, status: int, scope: Scope, context: ServiceContext) -> None:
        who: Caller | Suspect = scope.get("caller") or self._suspect(scope)
        times = self._tally.worth_telling(who.tenant, who.key, str(status))
        if times:
            await Trail(context, scope, who).refused(status, times)

    def _suspect(self, scope: Scope) -> Suspect:
        key = bearer_key(scope)
        if key is None:
            return Suspect(DEFAULT_TENANT, NO_KEY)
        known = self._trusted.get(key_id(key) or "")  # looked up a moment ago
        return Suspect(known[0].tenant, known[0].id) if known else Suspect(DEFAULT_TENANT, UNKNOWN_KEY)

    async def _caller(self, scope: Scope, context: ServiceContext) -> Caller:
        """Raises ``Unauthorized``."""
        if self.digests is None:
            return ANYONE
        key = bearer_key(scope)
        if key is None:
            raise Unauthorized("The request carries no `Authorization: Bearer <key>`.")
        caller = self._bootstrap(key) or await self._stored(key, context)
        if caller is None:
            raise Unauthorized("The API key is not one of this service's, or counts no longer.")
        return caller

    def _bootstrap(self, key: bytes) -> Caller | None:
        digest = sha256(key).digest()
        matches = [hmac.compare_digest(digest, known) for known in self.digests or ()]  # all of them: constant time
        if not any(matches):
            return None
        name = f"env-{digest.hex()[:12]}"
        return Caller(DEFAULT_TENANT, name, "admin", name)

    async def _stored(self, key: bytes, context: ServiceContext) -> Caller | None:
        identifier = key_id(key)
        record = await self._record(identifier, context) if identifier else None
        if record is None or not record.opens(key, time.time()):
            return None
        return Caller(record.tenant, record.id, record.scope, record.family)

    async def _record(self, identifier: str, context: ServiceContext) -> KeyRecord | None:
        now = time.monotonic()
        kept = self._trusted.get(identifier)
        if kept and now - kept[1] < TRUSTED_S:
            return kept[0]
        record = await context.keys.find(identifier)
        if record is None:
            self._trusted.pop(identifier, None)
        else:
            if len(self._trusted) >= MOST_TRUSTED:
                self._trusted.clear()
            self._trusted[identifier] = (record, now)
        return record


def needed_scope(scope: Scope) -> KeyScope:
    """Reading takes ``read``, everything else ``write``, and what concerns a tenant as a whole ``admin``."""
    if scope["path"] in ADMIN:
        return "admin"
    return "read" if scope["method"] in SAFE else "write"


def is_open(path: str) -> bool:
    return path == "/" or path.startswith(OPEN)


def bearer_key(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, key = value.partition(b" ")
            return key.strip() or None if kind.lower() == b"bearer" else None
    return None


def rate_headers(limit: int, allowance: Allowance) -> dict[str, str]:
    """draft-ietf-httpapi-ratelimit-headers-10."""
    return {
        "RateLimit-Policy": f'"requests";q={limit};w={WINDOW_S}',
        "RateLimit": f'"requests";r={allowance.left};t={allowance.seconds}',
    }


def _with_rate(send: Send, limit: int, allowance: Allowance) -> Send:
    told = [(name.lower().encode(), value.encode()) for name, value in rate_headers(limit, allowance).items()]

    async def labelled(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *told]
        await send(message)

    return labelled
