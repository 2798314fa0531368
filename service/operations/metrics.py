"""``GET /metrics`` for Prometheus: read from Redis at scrape, so that every gateway tells the same.

For administrators, of their own tenant; the operator's see every tenant, by label. The format is Prometheus' text
exposition format 0.0.4, of which seven gauges need so little that it is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from fastapi import APIRouter, Request, Response

from fewbit.contract.resources import JobStatus
from service.context import ServiceContext, context_of
from service.http.openapi_operations import TEXT, documents
from service.keys.authentication import caller_of
from store.tenancy.tenants import Tenant
from store.tenancy.usage import Usage, tenants, usage
from store.webhooks import Outbox

router = APIRouter(tags=["service"])
PLAIN = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Gauge:
    name: str
    help: str


JOBS = Gauge("fewbit_jobs", "Jobs there are, by status.")
MODELS = Gauge("fewbit_models", "Models there are.")
DATASETS = Gauge("fewbit_datasets", "Datasets there are.")
BYTES = Gauge("fewbit_stored_bytes", "Bytes of models, datasets and artifacts.")
WORKERS = Gauge("fewbit_workers", "Workers that have announced themselves lately.")
DELIVERIES = Gauge("fewbit_webhook_deliveries_due", "Webhook deliveries that wait.")


@router.get(
    "/metrics",
    **documents("get_metrics", {200: "Prometheus' text format."}, content={"text/plain": {"schema": TEXT}}),
)
async def get_metrics(request: Request) -> Response:
    """Counts of your tenant, for Prometheus. For keys of scope `admin`; the operator's see every tenant, by label."""
    context, operator = context_of(request), caller_of(request).operator
    names = await tenants(context.redis) if operator else [context.tenant]
    rows = [(name if operator else "", await usage(context.redis, Tenant(name))) for name in names]
    lines = [*_of_tenants(rows), *(await _of_all(context) if operator else ())]
    return Response("\n".join(lines) + "\n", headers={"Content-Type": PLAIN})


def _of_tenants(rows: Sequence[tuple[str, Usage]]) -> Iterator[str]:
    yield from _head(JOBS)
    for tenant, used in rows:
        for status in get_args(JobStatus):
            yield _line(JOBS, used.jobs[status], tenant=tenant, status=status)
    for gauge in (MODELS, DATASETS, BYTES):
        yield from _head(gauge)
        for tenant, used in rows:
            yield _line(gauge, {MODELS: used.models, DATASETS: used.datasets, BYTES: used.bytes}[gauge], tenant=tenant)


async def _of_all(context: ServiceContext) -> list[str]:
    due = await Outbox(context.redis).waiting()
    alive = len(await context.fleet.workers())
    return [*_head(WORKERS), _line(WORKERS, alive), *_head(DELIVERIES), _line(DELIVERIES, due)]


def _head(gauge: Gauge) -> tuple[str, str]:
    return f"# HELP {gauge.name} {gauge.help}", f"# TYPE {gauge.name} gauge"


def _line(gauge: Gauge, value: int, **labels: str) -> str:
    """Names of tenants and statuses need no escaping."""
    told = ",".join(f'{name}="{label}"' for name, label in labels.items() if label)
    return f"{gauge.name}{{{told}}} {value}" if told else f"{gauge.name} {value}"
