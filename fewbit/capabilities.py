"""What this release can do. The gateway refuses the rest with 422; a test holds the engine to this table."""

from __future__ import annotations

from fewbit.spec import ArtifactKind, Backend, Method

FORMATS: tuple[str, ...] = ("pt2",)
METHODS: tuple[Method, ...] = ("dynamic", "analyze")
BACKENDS: tuple[Backend, ...] = ("graph",)
WEIGHT_DTYPES: tuple[str, ...] = ("int8",)
WEIGHT_GRANULARITIES: tuple[str, ...] = ("per_channel", "per_tensor")
WEIGHT_RANGES: tuple[str, ...] = ("minmax", "mse", "percentile", "clip")
ARTIFACT_KINDS: tuple[ArtifactKind, ...] = ("pt2", "torchscript")
METRICS: tuple[str, ...] = ("accuracy",)
