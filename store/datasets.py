"""Datasets: named arrays by content. They are judged before they are stored, so a record is always usable."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Literal, cast

from redis.asyncio import Redis

from fewbit.resources import ArraySignature, Dataset
from store.blobs import BlobInfo, Blobs
from store.ids import new_id
from store.records import DATASETS, PREFIX, DatasetRecord, dataset_key, references_key
from store.uploads import Forget, Forgotten, newest_ids

# KEYS 1 dataset-of:<sha256>, 2 the new record, 3 datasets, 4 blob references. ARGV 1 id, 2 the record
_CREATE = """
local known = redis.call('GET', KEYS[1])
if known then return known end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[3], 0, ARGV[1])
redis.call('SADD', KEYS[4], ARGV[1])
return ARGV[1]
"""


class Datasets:
    """The gateway's side; workers learn what they need from the job."""

    def __init__(self, redis: Redis, blobs: Blobs) -> None:
        self._redis = redis
        self._forget = Forget(redis, blobs)
        self._create = redis.register_script(_CREATE)

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
        keys = [_by_sha256(info.sha256), dataset_key(dataset.id), DATASETS, references_key(info.sha256)]
        kept = (await self._create(keys=keys, args=[dataset.id, dataset.model_dump_json()])).decode()
        record = await self.get(kept)
        if record is None:  # deleted in this very moment
            return await self.create_or_get(info, name, format, samples, arrays)
        return record, kept == dataset.id

    async def get(self, dataset_id: str) -> DatasetRecord | None:
        return DatasetRecord.of(await cast(Awaitable[bytes | None], self._redis.get(dataset_key(dataset_id))))

    async def page(self, limit: int, after: str | None = None) -> list[DatasetRecord]:
        """Newest first, at most ``limit``, those older than the dataset ``after``."""
        ids = await newest_ids(self._redis, DATASETS, limit, after)
        bodies = await self._redis.mget([dataset_key(each) for each in ids]) if ids else []
        return [record for body in cast(list[bytes | None], bodies) if (record := DatasetRecord.of(body)) is not None]

    async def delete(self, dataset_id: str) -> Forgotten:
        """Forget a dataset no unfinished job needs, and its bytes."""
        record = await self.get(dataset_id)
        if record is None:
            return "none"
        sha256 = record.dataset.sha256
        return await self._forget(dataset_id, sha256, dataset_key(dataset_id), _by_sha256(sha256), [DATASETS])


def _by_sha256(sha256: str) -> str:
    return f"{PREFIX}dataset-of:{sha256}"
