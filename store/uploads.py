"""What models and datasets have in common: how they are found, listed and deleted.

An upload is not deleted while a job that has not ended needs it (``scripts/uploads/delete.lua``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar, cast, get_args

from redis.asyncio import Redis

from fewbit.contract.resources import FINAL, JobStatus
from store.blobs.blob_store import Blobs
from store.blobs.references import drop_references
from store.records import BlobRef, Fields
from store.scripts.script import Script
from store.tenancy.tenants import Tenant, record_script

Deletion = Literal["deleted", "in-use", "none"]

_UNFINISHED = [status for status in get_args(JobStatus) if status not in FINAL]


class UploadRecord(Protocol):
    """A model or a dataset as stored."""

    FIELDS: ClassVar[tuple[str, ...]]

    @classmethod
    def of(cls, fields: Fields) -> Self | None: ...
    @property
    def blob(self) -> BlobRef: ...
    def json(self) -> bytes: ...


R = TypeVar("R", bound=UploadRecord)


class Uploads(ABC, Generic[R]):
    """The gateway's side, one tenant's."""

    def __init__(self, redis: Redis, blobs: Blobs, tenant: str, record: type[R]) -> None:
        self._redis = redis
        self._blobs = blobs
        self._tenant = Tenant(tenant)
        self._record = record
        self._read = record_script(redis, *record.FIELDS)
        self._delete = Script(redis, "uploads/delete")

    @abstractmethod
    def _key(self, upload_id: str) -> str:
        """Of the record."""

    @abstractmethod
    def _key_by_digest(self, sha256: str) -> str:
        """Of the id of the upload with these bytes."""

    @property
    @abstractmethod
    def _indexes(self) -> Sequence[str]:
        """That name uploads; the first names all of the tenant."""

    async def get(self, upload_id: str) -> R | None:
        fields = await self._read([self._key(upload_id)], tenant=self._tenant.name)
        return self._record.of(fields) if fields else None

    async def page(self, limit: int, after: str | None = None) -> list[R]:
        """Newest first, at most ``limit``, those older than the upload ``after``."""
        ids = await newest_ids(self._redis, self._indexes[0], limit, after)
        async with self._redis.pipeline(transaction=False) as pipe:
            for upload_id in ids:
                pipe.hmget(self._key(upload_id), self._record.FIELDS)
            records = [self._record.of(fields) for fields in await pipe.execute()]
        return [record for record in records if record is not None]

    async def delete(self, upload_id: str) -> Deletion:
        """Forget an upload that no unfinished job needs, and its bytes if nothing else needs them."""
        record = await self.get(upload_id)
        if record is None:
            return "none"
        sha256 = record.blob.sha256
        unfinished = [self._tenant.jobs_by_status(status) for status in _UNFINISHED]
        keys = [self._key(upload_id), self._key_by_digest(sha256), self._tenant.jobs_using(upload_id)]
        outcome = cast(Deletion, (await self._delete([*keys, *unfinished, *self._indexes], id=upload_id)).decode())
        if outcome == "deleted":
            await drop_references(self._redis, self._blobs, self._tenant, upload_id, [sha256])
        return outcome


async def newest_ids(redis: Redis, index: str, limit: int, after: str | None, lowest: str = "-") -> list[str]:
    """Ids of an index, newest first, those older than ``after``."""
    highest = f"({after}" if after else "+"
    found: Any = await redis.zrevrangebylex(index, highest, lowest, start=0, num=limit)
    return [upload_id.decode() for upload_id in found]
