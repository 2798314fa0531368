"""The worker's part, played by hand: what a test says happens to a model or a job, through the store's own classes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from fewbit.contract.problems import JobProblem
from fewbit.contract.report import Report
from fewbit.contract.resources import InputSignature, ModelFormat, ModelLayer
from store.blobs.blob_store import Blobs
from store.fleet import Announcer
from store.jobs.leases import Claim, Leases
from store.models import InspectedModels
from store.records import ArtifactRecord
from store.settings import StoreSettings
from tests.service.gateway import A_HOST

LAYERS = tuple(
    ModelLayer(
        name=name, type="torch.nn.Linear", op="aten.linear", shape=(4, 4), parameters=20, quantizable=True, reason=None
    )
    for name in ("encoder.query", "encoder.key", "classifier")
)
INPUTS = (InputSignature(name="x", dtype="float32", shape=("batch", 4), dynamic={"batch": (1, None)}),)


@dataclass(frozen=True)
class Found:
    """What an inspection found."""

    inputs: tuple[InputSignature, ...] = INPUTS
    layers: tuple[ModelLayer, ...] = LAYERS
    format: ModelFormat = "pt2"


class Worker:
    def __init__(self, redis: Redis, settings: StoreSettings) -> None:
        self.leases = Leases(redis, settings)
        self.models = InspectedModels(redis, settings)
        self.announcer = Announcer(redis)
        self.blobs = Blobs.of(settings)

    def inspect(self, model_id: str, found: Found | None = None) -> None:
        assert self.models.ready(model_id, found or Found())

    def reject(self, model_id: str, slug: str = "unsafe-model", detail: str = "It would run os.system.") -> None:
        assert self.models.reject(model_id, JobProblem.of(slug, detail))

    def claim(self, job_id: str) -> Claim:
        claim = self.leases.claim(job_id, f"worker@{A_HOST}")
        assert claim is not None
        return claim

    def fail(self, job_id: str, slug: str = "out-of-memory", detail: str = "It needed 9 GiB.") -> None:
        self.leases.fail(self.claim(job_id), JobProblem.of(slug, detail))

    def succeed(self, job_id: str, tmp_path: Path, told: Report | None = None, **files: bytes) -> None:
        """``files``: artifacts by kind; ``told``: a whole report, for those who read it."""
        claim = self.claim(job_id)
        stored = told.model_dump_json() if told else json.dumps(report(job_id))
        self.leases.succeed(claim, stored.encode(), [self._kept(tmp_path, *file) for file in files.items()])

    def announce(self, name: str, *queues: str) -> None:
        self.announcer.announce(name, {"queues": queues, "cpu": "a CPU", "threads": 2})

    def _kept(self, tmp_path: Path, kind: str, content: bytes) -> ArtifactRecord:
        path = tmp_path / f"model.{kind}"
        path.write_bytes(content)
        info = self.blobs.put_file(path)
        return ArtifactRecord(name=path.name, kind=kind, size=info.size, sha256=info.sha256)


def report(job_id: str) -> dict[str, Any]:
    return {"job": job_id, "verdict": "pass"}
