"""Datasets: named arrays by content. They are judged before they are stored, so a record is always usable."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from redis.asyncio import Redis

from fewbit.contract.resources import ArraySignature, Dataset
from store.blobs.blob_store import BlobInfo, Blobs
from store.ids import new_id
from store.records import DatasetRecord, dataset_key
from store.scripts.script import Script
from store.tenancy.tenants import DEFAULT_TENANT
from store.uploads import Uploads


class Datasets(Uploads[DatasetRecord]):
    """The gateway's side, one tenant's; workers learn what they need from the job."""

    def __init__(self, redis: Redis, blobs: Blobs, tenant: str = DEFAULT_TENANT) -> None:
        super().__init__(redis, blobs, tenant, DatasetRecord)
        self._create = Script(redis, "uploads/create_dataset")

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
        if record is None:  # deleted just now
            return await self.create_or_get(info, name, format, samples, arrays)
        return record, kept == dataset.id

    def _key(self, upload_id: str) -> str:
        return dataset_key(upload_id)

    def _key_by_digest(self, sha256: str) -> str:
        return self._tenant.dataset_of(sha256)

    @property
    def _indexes(self) -> Sequence[str]:
        return [self._tenant.datasets]
