"""Models: uploads by content, and what their inspection found."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Protocol, cast

import redis
from redis.asyncio import Redis

from fewbit.contract.problems import JobProblem
from fewbit.contract.resources import InputSignature, ModelLayer
from store.blobs.blob_store import BlobInfo, Blobs
from store.ids import new_id
from store.outage import persist
from store.queue import INSPECT
from store.records import (
    INSPECTING,
    BlobRef,
    ModelRecord,
    model_key,
    now_iso,
)
from store.scripts.script import Script
from store.settings import StoreSettings
from store.tenancy.tenants import DEFAULT_TENANT
from store.uploads import Uploads


class Inspection(Protocol):
    """What the engine's inspection tells (``workers.engine.task.Inspection``)."""

    @property
    def format(self) -> str: ...
    @property
    def inputs(self) -> tuple[InputSignature, ...]: ...
    @property
    def layers(self) -> tuple[ModelLayer, ...]: ...


class Models(Uploads[ModelRecord]):
    """The gateway's side, one tenant's."""

    def __init__(self, redis: Redis, blobs: Blobs, tenant: str = DEFAULT_TENANT) -> None:
        super().__init__(redis, blobs, tenant, ModelRecord)
        self._create = Script(redis, "uploads/create_model")

    async def create_or_get(
        self, info: BlobInfo, name: str | None, model_id: str | None = None
    ) -> tuple[ModelRecord, bool]:
        """The model of these bytes, and whether an inspection is due, whose message is the caller's to send: it is for
        a new model, and for one whose inspection failed for a reason that may have passed. ``model_id``: a fresh id,
        which only a new model has afterwards."""
        model_id = model_id or new_id("mdl")
        tenant = self._tenant
        fields = {
            "id": model_id,
            "tenant": tenant.name,
            "status": "inspecting",
            "format": "unknown",
            "size": str(info.size),
            "sha256": info.sha256,
            "name": json.dumps(name),
            "created_at": now_iso(),
        }
        known, held = tenant.model_of(info.sha256), tenant.references(info.sha256)
        keys = [known, model_key(model_id), tenant.models, INSPECTING, held]
        now_ms = int(time.time() * 1000)
        kept, due = await self._create(keys, id=model_id, now_ms=now_ms, records=model_key(""), fields=fields)
        record = await self.get(kept.decode())
        if record is None:  # deleted just now: the bytes are here, so it is a new upload
            return await self.create_or_get(info, name, model_id)
        return record, due == b"1"

    def _key(self, upload_id: str) -> str:
        return model_key(upload_id)

    def _key_by_digest(self, sha256: str) -> str:
        return self._tenant.model_of(sha256)

    @property
    def _indexes(self) -> Sequence[str]:
        return [self._tenant.models, INSPECTING]


class InspectedModels:
    """The workers' side: what waits for its inspection, and the verdict. Writes wait for a Redis that restarts."""

    def __init__(self, redis: redis.Redis, settings: StoreSettings) -> None:
        self._redis = redis
        self._settings = settings
        self._end = Script(redis, "uploads/end_inspection")
        self._begin = Script(redis, "uploads/begin_inspection")

    def inspecting(self, model_id: str) -> BlobRef | None:
        """Begin an inspection: the bytes to look at. ``None`` when the model is gone or judged already."""
        record = persist(lambda: self._read(model_id), self._settings.inspect_s)
        keys, now_ms = [model_key(model_id), INSPECTING], int(time.time() * 1000)
        if record is None or not persist(
            lambda: self._begin(keys, id=model_id, now_ms=now_ms), self._settings.inspect_s
        ):
            return None
        return record.blob

    def ready(self, model_id: str, inspection: Inspection) -> bool:
        """False when the model was deleted or judged meanwhile."""
        fields = {
            "status": "ready",
            "format": inspection.format,
            "inputs": json.dumps([signature.model_dump(mode="json") for signature in inspection.inputs]),
            "layers": json.dumps([layer.model_dump(mode="json") for layer in inspection.layers]),
        }
        return self._judged(model_id, fields)

    def reject(self, model_id: str, problem: JobProblem) -> bool:
        """False when the model was deleted or judged meanwhile."""
        retryable = "1" if problem.retryable else "0"
        fields = {"status": "rejected", "error": problem.model_dump_json(), "retryable": retryable}
        return self._judged(model_id, fields)

    def overdue(self, now: float) -> list[str]:
        """Models that have waited too long: their message got lost, or their worker did. Each is named once a
        while, and none as long as there are as many messages as models: then they wait for their turn.

        One that was begun ``max_attempts`` times kills its workers: it is rejected instead of named.
        """
        before = int((now - self._settings.inspect_s) * 1000)
        found = cast("list[bytes]", self._redis.zrangebyscore(INSPECTING, "-inf", before))
        waiting = [model_id for model_id in map(bytes.decode, found) if not self._given_up(model_id)]
        if not waiting or self._has_messages_for_all():
            return []
        self._redis.zadd(INSPECTING, dict.fromkeys(waiting, int(now * 1000)), xx=True)
        return waiting

    def _has_messages_for_all(self) -> bool:
        return self._redis.llen(INSPECT) >= self._redis.zcard(INSPECTING)

    def _given_up(self, model_id: str) -> bool:
        begun = int(cast("bytes | None", self._redis.hget(model_key(model_id), "inspections")) or 0)
        if begun < self._settings.max_attempts:
            return False
        self.reject(model_id, JobProblem.of("worker-lost", f"The worker was lost in each of {begun} inspections."))
        return True

    def _read(self, model_id: str) -> ModelRecord | None:
        return ModelRecord.of(cast(list[bytes | None], self._redis.hmget(model_key(model_id), ModelRecord.FIELDS)))

    def _judged(self, model_id: str, fields: dict[str, str]) -> bool:
        keys = [model_key(model_id), INSPECTING]
        return bool(persist(lambda: self._end(keys, id=model_id, fields=fields), self._settings.inspect_s))
