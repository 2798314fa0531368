"""The report: what was quantized, what was not and why, what ran, what it cost. Every number is finite."""

from __future__ import annotations

from typing import Any, Literal

from fewbit.resources import ModelFormat, Reason, Resource
from fewbit.spec import JobSpec

Verdict = Literal["pass", "warn", "fail"]

SQNR_CAP_DB = 150.0  # bit-identical outputs have no finite ratio; float32 resolves no more than this


class ReportModel(Resource):
    """Which upload this report speaks of."""

    id: str
    sha256: str
    format: ModelFormat


class Gate(Resource):
    """One limit of the spec, the value measured against it, and whether it was met."""

    gate: str
    limit: float
    value: float | None
    met: bool


class LayerCount(Resource):
    """Rows of the layer table."""

    quantized: int
    total: int


class Coverage(Resource):
    """How much of the model is int8. ``parameters`` and ``bytes`` are shares of the whole model, ``macs`` and
    ``time`` shares of all rows of the layer table (``time``: their measured float time)."""

    layers: LayerCount
    parameters: float
    bytes: float
    macs: float
    time: float
    reasons: dict[str, int]


class Size(Resource):
    """Bytes on disk: the upload, and the smallest artifact that runs alone. Null when the job made none."""

    before: int
    after: int | None
    ratio: float | None


class Metric(Resource):
    """One metric on the labels, float against int8 on the same samples. ``ci95`` and ``p_value`` are of the paired
    difference; null where the metric has no paired test."""

    name: str
    before: float
    after: float
    delta: float
    ci95: tuple[float, float] | None
    p_value: float | None
    note: str


class OutputSimilarity(Resource):
    """int8 output against float output. ``sqnr_db`` is capped at 150; ``top1_agreement`` is null without classes."""

    sqnr_db: float
    cosine: float
    max_abs_error: float
    top1_agreement: float | None


class Flip(Resource):
    """A sample whose predicted class changed."""

    sample: int
    before: int
    after: int
    label: int | None


class Accuracy(Resource):
    """Measured by running the delivered artifact, in a process that never saw the model. ``artifact`` names it."""

    artifact: str
    samples: int
    batch_size: int
    labelled: bool
    kind: Literal["real", "synthetic"]
    metrics: tuple[Metric, ...]
    output: OutputSimilarity
    flips: tuple[Flip, ...]


class Percentiles(Resource):
    """Milliseconds for one batch. ``min`` is the fastest seen, what a busy machine disturbs least."""

    min: float
    p50: float
    p95: float


class ArtifactLatency(Percentiles):
    """``speedup`` is the median of float time over artifact time, run in turn."""

    speedup: float


class Latency(Resource):
    """Float and artifacts measured in turn, in one process, on one batch."""

    threads: int
    batch: int
    before_ms: Percentiles
    artifacts: dict[str, ArtifactLatency]


class WeightScheme(Resource):
    """Symmetric integer weights."""

    dtype: str
    granularity: str


class ActivationScheme(Resource):
    """``reduce_range``: seven bits instead of eight, so that CPUs without VNNI do not saturate."""

    dtype: str
    mode: Literal["dynamic", "static"]
    granularity: str
    reduce_range: bool


class Scheme(Resource):
    """How one layer is quantized; ``activations`` is null when only the weights are. ``smooth``: the alpha that its
    input was smoothed with; null when it was left as it is."""

    weights: WeightScheme
    activations: ActivationScheme | None
    smooth: float | None = None


class EagerVerdict(Resource):
    """What ``torch.ao.quantization.quantize_dynamic(model)`` would do with this layer."""

    quantized: bool
    reason: Reason | None = None


class Histogram(Resource):
    """``counts[i]`` values lie in ``[edges[i], edges[i+1])``."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class WeightStats(Resource):
    """Statistics of the float weight. ``outlier_ratio``: share beyond six standard deviations; ``zeroed_ratio``:
    share of non-zero weights that round to zero; ``saturated_ratio``: share beyond the chosen clip."""

    min: float
    max: float
    std: float
    kurtosis: float
    outlier_ratio: float
    zeroed_ratio: float
    saturated_ratio: float
    sqnr_db: dict[str, float]
    histogram: Histogram


class LayerError(Resource):
    """``output_sqnr_db``: the quantized layer's own output against float on the same input."""

    output_sqnr_db: float | None
    sensitivity: float | None = None


class LayerReport(Resource):
    """One row of the layer table. ``shape`` is the weight's; ``macs`` are for one sample; ``calls`` counts the uses."""

    name: str
    type: str
    op: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    calls: int
    quantized: bool
    scheme: Scheme | None
    executed: str | None
    reason: Reason | None
    eager: EagerVerdict
    weights: WeightStats | None
    activations: dict[str, Any] | None = None
    error: LayerError | None


class Product(Resource):
    """A product of two activations (attention scores): it has no weight to quantize, and is counted nowhere."""

    name: str
    type: str
    op: str
    macs: int | None


class Finding(Resource):
    """Something to know or to act on."""

    severity: Literal["info", "warning", "error"]
    code: str
    layer: str | None = None
    message: str
    remedy: str | None = None
    patch: dict[str, Any] | None = None


class ReportArtifact(Resource):
    """A delivered file. ``verified``: it was loaded in a fresh process, ran, and agreed with the engine. ``output`` is
    null for a file that holds weights and no program: each weight was rebuilt from it and compared instead."""

    name: str
    kind: str
    size: int
    sha256: str
    verified: bool
    output: OutputSimilarity | None


class Provenance(Resource):
    """What it takes to get these numbers again."""

    fewbit: str
    torch: str
    torchao: str | None
    numpy: str
    python: str
    cpu: str
    isa: str
    threads: int
    seed: int
    timings_s: dict[str, float]
    peak_memory_bytes: int


class Report(Resource):
    """``GET /jobs/{id}/report``."""

    job: str
    model: ReportModel
    spec: JobSpec
    verdict: Verdict
    gates: tuple[Gate, ...]
    coverage: Coverage
    size: Size
    accuracy: Accuracy | None
    latency: Latency | None
    layers: tuple[LayerReport, ...]
    products: tuple[Product, ...]
    findings: tuple[Finding, ...]
    artifacts: tuple[ReportArtifact, ...]
    provenance: Provenance
