"""What this release supports. The gateway refuses the rest with 422; a test checks the engine against this table."""

from __future__ import annotations

from fewbit.contract import metrics
from fewbit.contract.spec import ArtifactKind, Backend, Method, Target

FORMATS: tuple[str, ...] = ("pt2", "transformers", "module", "torchscript")
METHODS: tuple[Method, ...] = ("dynamic", "static", "weight_only", "analyze")
BACKENDS: tuple[Backend, ...] = ("graph", "eager")
WEIGHT_DTYPES: tuple[str, ...] = ("int8", "int4")
WEIGHT_GRANULARITIES: tuple[str, ...] = ("per_channel", "per_tensor", "per_group")
WEIGHT_RANGES: tuple[str, ...] = ("minmax", "mse", "percentile", "clip")
ACTIVATION_DTYPES: tuple[str, ...] = ("uint8", "int8")
ACTIVATION_RANGES: tuple[str, ...] = (
    "minmax", "moving_average", "histogram", "mse", "entropy", "percentile", "clip",
)  # fmt: skip
TARGETS: tuple[Target, ...] = ("avx2", "avx512", "vnni", "arm")
ARTIFACT_KINDS: tuple[ArtifactKind, ...] = ("pt2", "torchscript", "onnx", "safetensors")
METRICS: tuple[str, ...] = metrics.METRICS
