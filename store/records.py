"""How things lie in Redis: key names, and the codecs between hashes and values.

A record is a hash of plain fields. Those that hold JSON hold the very bytes the API returns, so a read is one HMGET
and a concatenation, and Lua never encodes JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from fewbit.contract.resources import FINAL, Dataset, InputSignature, Model, ModelLayer
from fewbit.contract.spec import JobSpec
from store.tenancy.tenants import DEFAULT_TENANT, Tenant

PREFIX = "fewbit:"

INSPECTING = f"{PREFIX}inspecting"
LEASES = f"{PREFIX}leases"
FLEET = f"{PREFIX}fleet"
HOLDS = f"{PREFIX}holds"
DELETING = f"{PREFIX}deleting"


def model_key(model_id: str) -> str:
    return f"{PREFIX}model:{model_id}"


def dataset_key(dataset_id: str) -> str:
    return f"{PREFIX}dataset:{dataset_id}"


def job_key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def events_key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}:events"


def worker_key(name: str) -> str:
    return f"{PREFIX}worker:{name}"


def idempotency_key(name: str) -> str:
    return f"{PREFIX}idempotency:{name}"


def now_iso() -> str:
    """Now in UTC, as the API spells it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Fields = Sequence[bytes | None]


@dataclass(frozen=True)
class BlobRef:
    """A file a job needs: the upload's id, and where its bytes are."""

    id: str
    sha256: str
    size: int
    format: str
    tenant: str = DEFAULT_TENANT


class ArtifactRecord(BaseModel):
    """A file a job made. Its bytes are the blob ``sha256``."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: str
    size: int
    sha256: str
    media_type: str = "application/octet-stream"


@dataclass(frozen=True)
class JobRecord:
    """A job as stored; fields named ``*_json`` are JSON text, ``b"null"`` when there is none."""

    id: str
    status: str
    revision: int
    attempts: int
    spec_json: bytes
    progress_json: bytes
    error_json: bytes
    created_at: str
    started_at: str | None
    finished_at: str | None
    labels_json: bytes
    artifacts_json: bytes

    FIELDS = (
        "id", "status", "revision", "attempts", "spec", "progress", "error",
        "created_at", "started_at", "finished_at", "labels", "artifacts",
    )  # fmt: skip

    @classmethod
    def of(cls, fields: Fields) -> JobRecord | None:
        """From ``HMGET key *FIELDS``; ``None`` when there is no such job."""
        if fields[0] is None:
            return None
        return cls(
            id=fields[0].decode(),
            status=(fields[1] or b"").decode(),
            revision=int(fields[2] or 0),
            attempts=int(fields[3] or 0),
            spec_json=fields[4] or b"null",
            progress_json=fields[5] or b"null",
            error_json=fields[6] or b"null",
            created_at=(fields[7] or b"").decode(),
            started_at=_text(fields[8]),
            finished_at=_text(fields[9]),
            labels_json=fields[10] or b"{}",
            artifacts_json=fields[11] or b"[]",
        )

    @property
    def final(self) -> bool:
        return self.status in FINAL

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = json.loads(self.labels_json)
        return labels

    @property
    def model_id(self) -> str:
        model: str = json.loads(self.spec_json)["model"]
        return model

    @property
    def artifacts(self) -> tuple[ArtifactRecord, ...]:
        return tuple(ArtifactRecord.model_validate(row) for row in json.loads(self.artifacts_json))

    def json(self) -> bytes:
        """What ``GET /jobs/{id}`` returns, a ``Job``; only the JSON fields could need escaping."""
        return b'{"id":"%b","status":"%b","spec":%b,"progress":%b,"error":%b,"attempts":%d,"revision":%d,%b}' % (
            self.id.encode(),
            self.status.encode(),
            self.spec_json,
            self.progress_json,
            self.error_json,
            self.attempts,
            self.revision,
            b'"created_at":%b,"started_at":%b,"finished_at":%b'
            % (_quoted(self.created_at), _quoted(self.started_at), _quoted(self.finished_at)),
        )


@dataclass(frozen=True)
class ModelRecord:
    """A model as stored. ``inputs`` and ``layers`` are JSON until someone needs them."""

    id: str
    status: str
    format: str
    size: int
    sha256: str
    name_json: bytes
    inputs_json: bytes
    layers_json: bytes
    error_json: bytes
    created_at: str
    tenant: str

    FIELDS = ("id", "status", "format", "size", "sha256", "name", "inputs", "layers", "error", "created_at", "tenant")

    @classmethod
    def of(cls, fields: Fields) -> ModelRecord | None:
        if fields[0] is None:
            return None
        return cls(
            id=fields[0].decode(),
            status=(fields[1] or b"").decode(),
            format=(fields[2] or b"unknown").decode(),
            size=int(fields[3] or 0),
            sha256=(fields[4] or b"").decode(),
            name_json=fields[5] or b"null",
            inputs_json=fields[6] or b"[]",
            layers_json=fields[7] or b"[]",
            error_json=fields[8] or b"null",
            created_at=(fields[9] or b"").decode(),
            tenant=(fields[10] or b"").decode(),
        )

    @property
    def blob(self) -> BlobRef:
        return BlobRef(self.id, self.sha256, self.size, self.format, self.tenant)

    @property
    def inputs(self) -> tuple[InputSignature, ...]:
        return tuple(InputSignature.model_validate(row) for row in json.loads(self.inputs_json))

    @property
    def layers(self) -> tuple[ModelLayer, ...]:
        return tuple(ModelLayer.model_validate(row) for row in json.loads(self.layers_json))

    @property
    def model(self) -> Model:
        return Model.model_validate_json(self.json())

    def json(self) -> bytes:
        """What ``GET /models/{id}`` returns (``fewbit.contract.resources.Model``)."""
        return b'{"id":"%b","name":%b,"format":"%b","size":%d,"sha256":"%b","status":"%b",%b,"created_at":%b}' % (
            self.id.encode(),
            self.name_json,
            self.format.encode(),
            self.size,
            self.sha256.encode(),
            self.status.encode(),
            b'"inputs":%b,"layers":%b,"error":%b' % (self.inputs_json, self.layers_json, self.error_json),
            _quoted(self.created_at),
        )


@dataclass(frozen=True)
class DatasetRecord:
    """A dataset as stored: its JSON, and where its bytes are."""

    dataset: Dataset
    tenant: str

    FIELDS = ("record", "tenant")

    @classmethod
    def of(cls, fields: Fields) -> DatasetRecord | None:
        if fields[0] is None:
            return None
        return cls(Dataset.model_validate_json(fields[0]), (fields[1] or b"").decode())

    @property
    def blob(self) -> BlobRef:
        return BlobRef(self.dataset.id, self.dataset.sha256, self.dataset.size, self.dataset.format, self.tenant)

    def json(self) -> bytes:
        return self.dataset.model_dump_json().encode()


@dataclass(frozen=True)
class NewJob:
    """What a job is made of: the resolved spec, and the uploads it names, all of one tenant. ``line``: the queue it
    waits in."""

    spec: JobSpec
    model: BlobRef
    calibration: BlobRef | None = None
    evaluation: BlobRef | None = None
    line: str = "small"

    @property
    def datasets(self) -> tuple[BlobRef, ...]:
        return tuple({ref.id: ref for ref in (self.calibration, self.evaluation) if ref is not None}.values())

    @property
    def tenant(self) -> Tenant:
        return Tenant(self.model.tenant)

    def indexes(self) -> list[str]:
        """Every index a job of this spec belongs to, but the one by status."""
        tenant = self.tenant
        return [
            tenant.jobs,
            tenant.jobs_using(self.model.id),
            *(tenant.jobs_using(ref.id) for ref in self.datasets),
            *(tenant.jobs_by_label(name, value) for name, value in self.spec.labels.items()),
        ]

    def fields(self) -> dict[str, str]:
        """The hash fields that never change."""
        refs = {"model_ref": self.model, "calibration_ref": self.calibration, "evaluation_ref": self.evaluation}
        return {
            "tenant": self.model.tenant,
            "line": self.line,
            "webhook": self.spec.webhook or "",
            "spec": self.spec.model_dump_json(),
            "labels": json.dumps(self.spec.labels),
            "indexes": json.dumps(self.indexes()),
            **{name: encode_ref(ref) for name, ref in refs.items() if ref is not None},
        }


def encode_ref(ref: BlobRef) -> str:
    return json.dumps([ref.id, ref.sha256, ref.size, ref.format, ref.tenant])


def decode_ref(text: bytes | None) -> BlobRef | None:
    return None if text is None else BlobRef(*json.loads(text))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _quoted(value: str | None) -> bytes:
    return b"null" if value is None else b'"%b"' % value.encode()
