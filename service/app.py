"""The gateway: HTTP in, jobs out. ``uvicorn service.app:app``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from fewbit.version import VERSION
from service.artifacts import endpoints as artifacts
from service.audit import endpoints as audit
from service.context import ServiceContext, context_by_tenant
from service.datasets import endpoints as datasets
from service.http import ids  # noqa: F401  # registers {…:id} before routes need it
from service.http.bounds import Bounds
from service.http.envelope import Envelope, refuse
from service.http.openapi_document import ABOUT, TAGS, openapi_of
from service.jobs import comparison
from service.jobs import endpoints as jobs
from service.keys.authentication import KeyAuth
from service.models import endpoints as models
from service.operations import capabilities, health, metrics
from service.pages import docs_page, front_page, problem_pages, reason_pages
from service.settings import ServiceSettings
from service.shutdown import cancel_and_wait
from service.startup import NO_KEYS
from service.uploads.abandoned import remove_abandoned
from service.webhooks import endpoints as webhooks
from service.webhooks.courier import Courier
from service.webhooks.posting import Posting
from store.settings import StoreSettings
from store.webhooks import Outbox

ROUTERS = (
    jobs,
    artifacts,
    models,
    datasets,
    comparison,
    capabilities,
    webhooks,
    audit,
    metrics,
    health,
    problem_pages,
    reason_pages,
    front_page,
    docs_page,
)  # matched in order: most used first


def create_app(settings: ServiceSettings | None = None, store: StoreSettings | None = None) -> FastAPI:
    """The app; it opens the store when it starts, and refuses to start unguarded."""
    service_settings, store_settings = settings or ServiceSettings(), store or StoreSettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.context = context = ServiceContext.open(service_settings, store_settings)
        app.state.context_of_tenant = context_by_tenant(context)
        await _refuse_to_start_unguarded(context)
        post = Posting(service_settings.webhook_allow_private)
        courier = asyncio.create_task(Courier(Outbox(context.redis), post).run())
        tidying = asyncio.create_task(remove_abandoned(context.blobs))
        yield
        await cancel_and_wait(courier)
        await cancel_and_wait(tidying)
        await context.close()

    app = FastAPI(
        title="Fewbit",
        version=VERSION,
        description=ABOUT,
        openapi_tags=TAGS,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: refuse, RequestValidationError: refuse},
    )
    for endpoints in ROUTERS:
        # Not include_router: the routes are flat as they are, and each nested router is one more match per request.
        app.router.routes.extend(endpoints.router.routes)
    app.add_middleware(KeyAuth, digests=service_settings.key_digests if service_settings.auth == "on" else None)
    app.add_middleware(Bounds, hosts=service_settings.host_names, idle_s=service_settings.idle_s)
    app.add_middleware(Envelope)
    app.openapi = lambda: openapi_of(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


async def _refuse_to_start_unguarded(context: ServiceContext) -> None:
    settings = context.settings
    if settings.auth == "off" or settings.key_digests or await _any_stored(context):
        return
    raise RuntimeError(NO_KEYS)


async def _any_stored(context: ServiceContext) -> bool:
    try:
        return await context.keys.any()
    except RedisError:  # nobody can tell, so nobody is let in
        return False


app = create_app()
