"""``GET /metrics`` for Prometheus: read from Redis at scrape, so that every gateway gives the same numbers.

For administrators, of their own tenant. The operator's administrators see every tenant, by label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from fewbit.contract.resources import JobStatus
from service.context import ServiceContext, context_of
from service.http.openapi_operations import TEXT, documents
from service.keys.authentication import caller_of
from store.tenancy.tenants import Tenant
from store.tenancy.usage import Usage, tenants, usage
from store.webhooks import Outbox

router = APIRouter(tags=["service"])
FORMATS = {"text/plain": {"schema": TEXT}, "application/openmetrics-text": {"schema": TEXT}}


@router.get(
    "/metrics",
    **documents("get_metrics", {200: "Prometheus' text format, or OpenMetrics by `Accept`."}, content=FORMATS),
)
async def get_metrics(request: Request) -> Response:
    """Counts of your tenant, for Prometheus. For keys of scope `admin`; the operator's see every tenant, by label."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(await read_counts(context_of(request), is_operator=caller_of(request).operator))
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"Content-Type": content_type})


async def read_counts(context: ServiceContext, *, is_operator: bool) -> Counts:
    if not is_operator:
        return Counts({context.tenant: await usage(context.redis, Tenant(context.tenant))})
    by_tenant = {name: await usage(context.redis, Tenant(name)) for name in await tenants(context.redis)}
    service = ServiceCounts(len(await context.fleet.workers()), await Outbox(context.redis).waiting())
    return Counts(by_tenant, service)


@dataclass(frozen=True)
class ServiceCounts:
    """What belongs to no tenant."""

    workers: int
    deliveries_due: int


@dataclass(frozen=True, eq=False)  # hashed by the registry
class Counts(Collector):
    """What was read, as metrics. With ``service``, they are for the operator, and name the tenants."""

    by_tenant: Mapping[str, Usage]
    service: ServiceCounts | None = None

    def collect(self) -> Iterator[Metric]:
        labels = ["tenant"] if self.service else []
        jobs = GaugeMetricFamily("fewbit_jobs", "Jobs there are, by status.", labels=[*labels, "status"])
        models = GaugeMetricFamily("fewbit_models", "Models there are.", labels=labels)
        datasets = GaugeMetricFamily("fewbit_datasets", "Datasets there are.", labels=labels)
        stored = GaugeMetricFamily("fewbit_stored_bytes", "Bytes of models, datasets and artifacts.", labels=labels)
        for tenant, used in self.by_tenant.items():
            owner = [tenant] if self.service else []
            for status in get_args(JobStatus):
                jobs.add_metric([*owner, status], used.jobs[status])
            models.add_metric(owner, used.models)
            datasets.add_metric(owner, used.datasets)
            stored.add_metric(owner, used.bytes)
        yield from (jobs, models, datasets, stored)
        if self.service:
            yield GaugeMetricFamily(
                "fewbit_workers", "Workers that have announced themselves lately.", self.service.workers
            )
            yield GaugeMetricFamily(
                "fewbit_webhook_deliveries_due", "Webhook deliveries that wait.", self.service.deliveries_due
            )
