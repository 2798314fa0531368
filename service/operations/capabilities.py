"""``/capabilities``: what this service can do, so that nobody has to find out by trial."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.responses import JSONResponse

from fewbit.contract import capabilities as can
from fewbit.version import VERSION
from service.context import context_of
from service.http.answers import LONGEST_PAGE
from service.http.openapi_operations import documents
from service.http.preferences import LONGEST_WAIT_S
from service.jobs.posted_spec import LONGEST_SPEC
from service.settings import ServiceSettings
from store.settings import StoreSettings

router = APIRouter(tags=["service"])


class WeightCapabilities(BaseModel):
    dtypes: tuple[str, ...] = can.WEIGHT_DTYPES
    granularities: tuple[str, ...] = can.WEIGHT_GRANULARITIES
    ranges: tuple[str, ...] = can.WEIGHT_RANGES


class ActivationCapabilities(BaseModel):
    dtypes: tuple[str, ...] = can.ACTIVATION_DTYPES
    ranges: tuple[str, ...] = can.ACTIVATION_RANGES


class Limits(BaseModel):
    """Sizes in bytes, times in seconds."""

    model_bytes: int
    dataset_bytes: int
    unpacked_dataset_bytes: int
    spec_bytes: int = LONGEST_SPEC
    page: int = LONGEST_PAGE
    wait_s: int = LONGEST_WAIT_S
    attempts: int


class Capabilities(BaseModel):
    """Formats, methods, artifact kinds, limits, and the workers there are now."""

    version: str = VERSION
    formats: tuple[str, ...] = can.FORMATS
    methods: tuple[str, ...] = can.METHODS
    backends: tuple[str, ...] = can.BACKENDS
    weights: WeightCapabilities = WeightCapabilities()
    activations: ActivationCapabilities = ActivationCapabilities()
    observers: tuple[str, ...] = can.ACTIVATION_RANGES
    targets: tuple[str, ...] = can.TARGETS
    artifacts: tuple[str, ...] = can.ARTIFACT_KINDS
    metrics: tuple[str, ...] = can.METRICS
    limits: Limits
    workers: tuple[dict[str, Any], ...]


@router.get("/capabilities", **documents("get_capabilities", {200: Capabilities}))
async def get_capabilities(request: Request) -> Response:
    """Formats, methods, artifact kinds, limits, and the workers there are now."""
    context = context_of(request)
    workers = tuple(_unnamed(worker) for worker in await context.fleet.workers())
    known = Capabilities(limits=limits(context.settings, context.store), workers=workers)
    return JSONResponse(known.model_dump(mode="json"))


def _unnamed(worker: dict[str, Any]) -> dict[str, Any]:
    """A worker is named after its host, which is nobody's business out here."""
    return {name: value for name, value in worker.items() if name != "name"}


def limits(settings: ServiceSettings, store: StoreSettings) -> Limits:
    return Limits(
        model_bytes=settings.max_model_bytes,
        dataset_bytes=settings.max_dataset_bytes,
        unpacked_dataset_bytes=settings.max_unpacked_dataset_bytes,
        attempts=store.max_attempts,
    )
