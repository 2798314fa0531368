"""The job spec: the body of ``POST /jobs``.

All defaults are here; ``GET /jobs/{id}`` returns the spec with the defaults filled in.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Method = Literal["dynamic", "static", "weight_only", "auto", "analyze"]
Backend = Literal["graph", "eager"]
Target = Literal["avx2", "avx512", "vnni", "arm"]
ArtifactKind = Literal["pt2", "torchscript", "onnx", "safetensors"]
Granularity = Literal["per_channel", "per_tensor", "per_group"]


class Strict(BaseModel):
    """Immutable; an unknown field is an error, and so are NaN and Infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Percentile(Strict):
    """Clip the range to this percentile of the absolute values."""

    percentile: float = Field(gt=50, le=100)


class Clip(Strict):
    """Clip the range to exactly these bounds."""

    clip: tuple[float, float]

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        if self.clip[0] >= self.clip[1]:
            raise ValueError("clip must be [low, high] with low < high")
        return self


WeightRange = Literal["minmax", "mse"] | Percentile | Clip
ActivationRange = Literal["minmax", "moving_average", "histogram", "mse", "entropy"] | Percentile | Clip


NonFinite = Literal["refuse", "repair"]


class Weights(Strict):
    """How weights are quantized: symmetric, zero point 0. ``non_finite``: a layer with NaN or infinite weights stays
    float, or they are repaired first: NaN to 0, infinity to the largest finite magnitude beside it."""

    dtype: Literal["int8", "int4"] = "int8"
    granularity: Granularity = "per_channel"
    group_size: int | None = Field(default=None, ge=8)
    range: WeightRange = "minmax"
    non_finite: NonFinite = "refuse"

    @model_validator(mode="after")
    def _group_size_goes_with_per_group(self) -> Self:
        if (self.granularity == "per_group") != (self.group_size is not None):
            raise ValueError("group_size is needed with granularity per_group, and only there")
        return self


class Activations(Strict):
    """How activations are quantized. Dynamic jobs take every token's range at run time and ignore ``range``."""

    dtype: Literal["uint8", "int8"] = "uint8"
    range: ActivationRange = "histogram"


class WeightsOverride(Strict):
    """What a rule changes in ``weights``; missing fields keep the job's value."""

    dtype: Literal["int8", "int4"] | None = None
    granularity: Granularity | None = None
    group_size: int | None = Field(default=None, ge=8)
    range: WeightRange | None = None
    non_finite: NonFinite | None = None


class ActivationsOverride(Strict):
    """What a rule changes in ``activations``; missing fields keep the job's value."""

    dtype: Literal["uint8", "int8"] | None = None
    range: ActivationRange | None = None


class LayerRule(Strict):
    """One entry of ``layers``. ``match`` is a shell-style pattern over the fully-qualified layer name."""

    match: str = Field(min_length=1, max_length=512)
    quantize: bool | None = None
    weights: WeightsOverride | None = None
    activations: ActivationsOverride | None = None

    def matches(self, name: str) -> bool:
        """Whether the rule applies to the layer of this fully-qualified name. ``*`` also matches dots."""
        return fnmatchcase(name, self.match)


class Smooth(Strict):
    """SmoothQuant (Xiao et al. 2022): move activation outliers into the weights."""

    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["auto"]


class Calibration(Strict):
    """The data that static ranges are computed from."""

    dataset: str
    samples: int = Field(default=128, ge=1)
    batch_size: int = Field(default=32, ge=1, le=4096)


class Evaluation(Strict):
    """The data that the loss is measured on. ``samples: null`` takes all of it. ``constant``: inputs without an
    axis for samples, whose arrays go whole into every batch."""

    dataset: str
    samples: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1, le=4096)
    metrics: tuple[str, ...] = ("accuracy",)
    constant: tuple[str, ...] = ()


class Gates(Strict):
    """Limits a pipeline sets. A gate that is not met makes ``report.verdict`` ``fail``; the job still succeeds."""

    max_drop: dict[str, Annotated[float, Field(ge=0)]] | None = None
    min_coverage: float | None = Field(default=None, ge=0, le=1)
    min_output_sqnr_db: float | None = None
    max_size_ratio: float | None = Field(default=None, gt=0)
    min_speedup: float | None = Field(default=None, gt=0)


class ReportParts(Strict):
    """What the report measures beyond layers, reasons, size and accuracy. Every part costs time and can be turned off.
    ``sensitivity``: an estimate from a few passes, or one evaluation per layer (``brute_force``)."""

    weights: bool = True
    activations: bool = True
    errors: bool = True
    saturation: bool = True
    calibration: bool = True
    sensitivity: Literal["estimate", "brute_force", "off"] = "estimate"
    latency: bool = True

    @property
    def is_off(self) -> bool:
        """Whether all parts are turned off."""
        return all(setting in (False, "off") for _, setting in self)


class Auto(Strict):
    """The search of ``method: auto``."""

    max_drop: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=lambda: {"accuracy": 0.005})
    objective: Literal["latency", "size"] = "latency"
    time_limit_s: int = Field(default=600, ge=1)


class JobSpec(Strict):
    """The body of ``POST /jobs``. ``target``: the CPU that will run the artifacts; null means one like the worker's."""

    model: str
    method: Method = "dynamic"
    backend: Backend = "graph"
    target: Target | None = None
    weights: Weights = Weights()
    activations: Activations = Activations()
    layers: tuple[LayerRule, ...] = Field(default=(), max_length=10_000)
    smooth: Smooth | None = None
    bias_correction: bool = False
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    gates: Gates = Gates()
    report: ReportParts = ReportParts()
    artifacts: tuple[ArtifactKind, ...] = Field(default=("pt2", "torchscript"), min_length=1)
    auto: Auto | None = None
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    webhook: str | None = None
    time_limit_s: int = Field(default=1800, ge=1, le=24 * 3600)
    seed: int = Field(default=0, ge=0, lt=2**63)
