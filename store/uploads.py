"""What models and datasets have in common: how they are listed, and how they are deleted.

An upload is not deleted while a job that has not ended needs it. Check and deletion are one script, so that no job can
be made in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

from redis.asyncio import Redis

from fewbit.contract.resources import FINAL, JobStatus
from store.blobs.blob_store import Blobs
from store.blobs.references import drop_references
from store.scripts.script import Script
from store.tenancy.tenants import Tenant

Forgotten = Literal["deleted", "in-use", "none"]

_UNFINISHED = [status for status in get_args(JobStatus) if status not in FINAL]


class Forget:
    """``await Forget(redis, blobs, tenant)(id, sha256, record, by_sha256, indexes)``."""

    def __init__(self, redis: Redis, blobs: Blobs, tenant: Tenant) -> None:
        self._redis = redis
        self._blobs = blobs
        self._tenant = tenant
        self._script = Script(redis, "uploads/delete")

    async def __call__(
        self, upload_id: str, sha256: str, record: str, by_sha256: str, indexes: Sequence[str]
    ) -> Forgotten:
        """Delete the record, and the bytes if nothing else needs them."""
        busy = [self._tenant.jobs_by_status(status) for status in _UNFINISHED]
        keys = [record, by_sha256, self._tenant.jobs_using(upload_id), *busy, *indexes]
        answer = cast(Forgotten, (await self._script(keys, id=upload_id)).decode())
        if answer == "deleted":
            await drop_references(self._redis, self._blobs, self._tenant, upload_id, [sha256])
        return answer


async def newest_ids(redis: Redis, index: str, limit: int, after: str | None, lowest: str = "-") -> list[str]:
    """Ids of an index, newest first, those older than ``after``."""
    highest = f"({after}" if after else "+"
    found = await redis.zrevrangebylex(index, highest, lowest, start=0, num=limit)
    return [each.decode() for each in cast(list[bytes], found)]
