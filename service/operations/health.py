"""``/health``: is this process alive, and can the whole do its work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, cast

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.responses import JSONResponse

from service.context import ServiceContext, service_context
from service.http.openapi_operations import documents
from service.http.problems import ServiceUnavailable
from store.queue import INSPECT, LARGE, SMALL

router = APIRouter(tags=["service"])
PATIENCE_S = 3.0

State = Literal["ok", "missing"]


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Each part the service needs, and whether it answers."""

    status: Literal["ok"] = "ok"
    parts: dict[str, State]


@router.get("/health/live", **documents("get_liveness", {200: Alive}, secured=False))
async def get_liveness() -> Response:
    """The process answers; nothing else is asked."""
    return JSONResponse(Alive().model_dump())


@router.get("/health/ready", **documents("get_readiness", {200: Ready}, secured=False))
async def get_readiness(request: Request) -> Response:
    """Redis and the blobs answer, and there is at least one worker for jobs and one for inspections. 503 names what is
    missing."""
    states = await look_at_parts(service_context(request))
    missing = [name for name, state in states.items() if state != "ok"]
    if missing:
        raise ServiceUnavailable(f"Not ready: {', '.join(missing)}.", parts=states)
    return JSONResponse(Ready(parts=states).model_dump())


async def look_at_parts(context: ServiceContext) -> dict[str, State]:
    """``redis``, ``blobs``, ``worker``, ``inspector``."""
    redis, blobs, workers = await asyncio.gather(
        _answers(context.redis.ping), _answers(lambda: context.blobs.exists("0" * 64)), _workers(context)
    )
    queues = {queue for worker in workers for queue in cast(Sequence[str], worker.get("queues", ()))}
    return {
        "redis": _state(redis),
        "blobs": _state(blobs),
        "worker": _state(bool(queues & {SMALL, LARGE})),
        "inspector": _state(INSPECT in queues),
    }


async def _answers(call: Callable[[], Any]) -> bool:
    """Whether the call ends well in time, whatever its answer."""
    try:
        await asyncio.wait_for(cast(Awaitable[Any], call()), PATIENCE_S)
    except Exception:  # why is for the part's own log; here only whether
        return False
    return True


async def _workers(context: ServiceContext) -> list[dict[str, Any]]:
    try:
        return await asyncio.wait_for(context.fleet.workers(), PATIENCE_S)
    except Exception:  # Redis is away, which `redis` says
        return []


def _state(good: bool) -> State:
    return "ok" if good else "missing"
