"""Datasets: named arrays by content. They are judged before they are stored, so a record is always usable."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from redis.asyncio import Redis

from fewbit.contract.resources import ArraySignature, Dataset
from store.blobs.blob_store import BlobInfo, Blobs
from store.ids import new_id
from store.records import DatasetRecord, dataset_key
from store.scripts.script import Script
from store.tenancy.tenants import DEFAULT_TENANT, Tenant, record_script
from store.uploads import Forget, Forgotten, newest_ids


class Datasets:
    """The gateway's side, one tenant's; workers learn what they need from the job."""

    def __init__(self, redis: Redis, blobs: Blobs, tenant: str = DEFAULT_TENANT) -> None:
        self._redis = redis
        self._tenant = Tenant(tenant)
        self._forget = Forget(redis, blobs, self._tenant)
        self._create = Script(redis, "uploads/create_dataset")
        self._record = record_script(redis, *DatasetRecord.FIELDS)

    async def create_or_get(
        self,
        info: BlobInfo,
        name: str | None,
        format: Literal["npz", "safetensors"],
        samples: int,
        arrays: tuple[ArraySignature, ...],
    ) -> tuple[DatasetRecord, bool]:
        """The dataset of these bytes, and whether it is new."""
        dataset = Dataset(
            id=new_id("dst"),
            name=name,
            format=format,
            size=info.size,
            sha256=info.sha256,
            samples=samples,
            arrays=arrays,
            created_at=datetime.now(UTC),
        )
        tenant = self._tenant
        known, held = tenant.dataset_of(info.sha256), tenant.references(info.sha256)
        keys = [known, dataset_key(dataset.id), tenant.datasets, held]
        record_json = dataset.model_dump_json()
        kept = (await self._create(keys, id=dataset.id, record=record_json, tenant=tenant.name)).decode()
        record = await self.get(kept)
        if record is None:  # deleted in this very moment
            return await self.create_or_get(info, name, format, samples, arrays)
        return record, kept == dataset.id

    async def get(self, dataset_id: str) -> DatasetRecord | None:
        fields = await self._record([dataset_key(dataset_id)], tenant=self._tenant.name)
        return DatasetRecord.of(fields) if fields else None

    async def page(self, limit: int, after: str | None = None) -> list[DatasetRecord]:
        """Newest first, at most ``limit``, those older than the dataset ``after``."""
        ids = await newest_ids(self._redis, self._tenant.datasets, limit, after)
        async with self._redis.pipeline(transaction=False) as pipe:
            for each in ids:
                pipe.hmget(dataset_key(each), DatasetRecord.FIELDS)
            records = [DatasetRecord.of(fields) for fields in await pipe.execute()]
        return [record for record in records if record is not None]

    async def delete(self, dataset_id: str) -> Forgotten:
        """Forget a dataset no unfinished job needs, and its bytes."""
        record = await self.get(dataset_id)
        if record is None:
            return "none"
        sha256, tenant = record.dataset.sha256, self._tenant
        known = tenant.dataset_of(sha256)
        return await self._forget(dataset_id, sha256, dataset_key(dataset_id), known, [tenant.datasets])
