"""What the service stores and returns: models, datasets, jobs, artifacts, webhooks, events."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fewbit.contract.problems import JobProblem
from fewbit.contract.spec import JobSpec

ModelFormat = Literal["pt2", "transformers", "module", "torchscript", "unknown"]
ModelStatus = Literal["inspecting", "ready", "rejected"]
JobStatus = Literal["queued", "running", "canceling", "succeeded", "failed", "canceled"]
FINAL: frozenset[str] = frozenset({"succeeded", "failed", "canceled"})


class Resource(BaseModel):
    """Immutable wire model; readers ignore fields they do not know."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Reason(Resource):
    """Why a layer is int8 or float. ``code`` names the cause; ``patch`` is a JSON merge patch for the job spec."""

    code: str
    message: str
    evidence: dict[str, Any] = Field(default_factory=dict)
    remedy: str | None = None
    patch: dict[str, Any] | None = None


class InputSignature(Resource):
    """One forward argument. A dimension is a size, or the name of a dynamic one, whose bounds ``dynamic`` holds.
    ``optional``: a dataset need not have it."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    dynamic: dict[str, tuple[int, int | None]] = Field(default_factory=dict)
    optional: bool = False


class ModelLayer(Resource):
    """One row of the layer table: a GEMM, convolution, embedding or recurrent cell with a constant operand."""

    name: str
    type: str
    op: str
    shape: tuple[int, ...]
    parameters: int
    quantizable: bool
    reason: Reason | None = None


class Model(Resource):
    """An uploaded model. ``layers`` and ``inputs`` are known once ``status`` is ``ready``."""

    id: str
    name: str | None = None
    format: ModelFormat
    size: int
    sha256: str
    status: ModelStatus
    inputs: tuple[InputSignature, ...] = ()
    layers: tuple[ModelLayer, ...] = ()
    error: JobProblem | None = None
    created_at: datetime


class ArraySignature(Resource):
    """One named array of a dataset; the first axis counts samples."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Dataset(Resource):
    """Named arrays of equal length. ``labels`` is the label; every other array is a model input."""

    id: str
    name: str | None = None
    format: Literal["npz", "safetensors"]
    size: int
    sha256: str
    samples: int
    arrays: tuple[ArraySignature, ...]
    created_at: datetime


class Progress(Resource):
    """How far a job is: the name of the stage and the share done, 0 to 1."""

    stage: str
    fraction: float = Field(ge=0, le=1)


class Job(Resource):
    """A job as ``GET /jobs/{id}`` returns it, its spec with every default filled in."""

    id: str
    status: JobStatus
    spec: JobSpec
    progress: Progress | None = None
    error: JobProblem | None = None
    attempts: int = 0
    revision: int
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Artifact(Resource):
    """One downloadable file of a finished job."""

    name: str
    kind: str
    size: int
    sha256: str
    media_type: str
    url: str


class NewWebhook(Resource):
    """The body of ``POST /webhooks``: a public ``https`` URL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str


class Webhook(Resource):
    """A URL that gets a message when a job ends."""

    id: str
    url: str
    created_at: datetime


class WebhookWithSecret(Webhook):
    """A new webhook: ``secret`` signs its deliveries, and is not shown again."""

    secret: str


class Attempt(Resource):
    """One attempt: the status of the answer, or why there was none."""

    at: datetime
    status: int | None
    error: str | None
    ms: int


class Delivery(Resource):
    """One message to a webhook: ``job.succeeded``, ``job.failed``, ``job.canceled`` or ``webhook.test``."""

    id: str
    type: str
    job: str | None
    status: Literal["pending", "delivered", "failed"]
    attempts: tuple[Attempt, ...]
    created_at: datetime


class Event(Resource):
    """One entry of a job's event stream."""

    id: str
    event: Literal["state", "progress", "log", "done"]
    data: dict[str, Any]
    at: datetime
