"""The gateway: HTTP in, jobs out. ``uvicorn service.app:app``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from fewbit.version import VERSION
from service import capabilities, health, ids, problem_pages  # noqa: F401  # ids: registers {…:id} before routes need it
from service.artifacts import endpoints as artifacts
from service.auth import BearerAuth
from service.datasets import endpoints as datasets
from service.description import ABOUT, TAGS, openapi_of
from service.envelope import Envelope, refuse
from service.jobs import endpoints as jobs
from service.models import endpoints as models
from service.parts import Parts
from service.settings import ServiceSettings
from store.settings import StoreSettings

ROUTERS = (jobs, artifacts, models, datasets, capabilities, health, problem_pages)  # matched in order: most used first


def create_app(settings: ServiceSettings | None = None, store: StoreSettings | None = None) -> FastAPI:
    """The app; it opens the store when it starts, and refuses to start unguarded."""
    service_settings, store_settings = settings or ServiceSettings(), store or StoreSettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _refuse_to_start_unguarded(service_settings)
        app.state.parts = parts = Parts.open(service_settings, store_settings)
        yield
        await parts.close()

    app = FastAPI(
        title="Fewbit",
        version=VERSION,
        description=ABOUT,
        openapi_tags=TAGS,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: refuse, RequestValidationError: refuse},
    )
    for room in ROUTERS:
        # Not include_router: the routes are flat as they are, and each nested router is one more match per request.
        app.router.routes.extend(room.router.routes)
    app.add_middleware(BearerAuth, digests=service_settings.key_digests if service_settings.auth == "on" else ())
    app.add_middleware(Envelope)
    app.openapi = lambda: openapi_of(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def _refuse_to_start_unguarded(settings: ServiceSettings) -> None:
    if settings.auth == "on" and not settings.key_digests:
        raise RuntimeError(
            "No API keys. Set FEWBIT_API_KEYS (comma separated; `openssl rand -hex 24` makes one), "
            "or FEWBIT_AUTH=off to let everyone in."
        )


app = create_app()
