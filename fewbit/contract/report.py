"""The report: what was quantized, what was not and why, what ran, what it cost. Every number is finite."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fewbit.contract.resources import ModelFormat, Reason, Resource
from fewbit.contract.spec import JobSpec

Verdict = Literal["pass", "warn", "fail"]

SQNR_CAP_DB = 150.0  # bit-identical outputs have no finite ratio; float32 resolves no more than this


class ReportModel(Resource):
    """The upload this report is about."""

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


class ClassAccuracy(Resource):
    """The share of one label's samples that are predicted right, float and int8."""

    label: int
    samples: int
    before: float
    after: float
    delta: float


class Accuracy(Resource):
    """Measured by running the delivered artifact, in a process that never saw the model. ``artifact`` names it.
    ``classes``: by label, those that changed most first; empty where labels are not classes. ``conclusion``: what the
    numbers mean, in a sentence."""

    artifact: str
    samples: int
    batch_size: int
    labelled: bool
    kind: Literal["real", "synthetic"]
    metrics: tuple[Metric, ...]
    output: OutputSimilarity
    flips: tuple[Flip, ...]
    classes: tuple[ClassAccuracy, ...] = ()
    conclusion: str = ""


class Percentiles(Resource):
    """Milliseconds for one batch. ``min`` is the fastest run, which a busy machine disturbs least."""

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


class Requested(Resource):
    """What the spec asks of this layer. ``rule``: the JSON pointer of the entry of ``layers`` that decided last; null
    where the job's defaults did. ``weights`` and ``activations`` are null where it asks for float."""

    quantized: bool
    weights: WeightScheme | None
    activations: Literal["dynamic", "static"] | None
    rule: str | None = None


class Execution(Resource):
    """What the profiler measured for this layer in ``artifact``: its kernel, milliseconds for one batch over all its
    calls, and its share of all layers' time."""

    artifact: str
    kernel: str
    ms: float
    share: float


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
    share of non-zero weights that round to zero; ``saturated_ratio``: share beyond the chosen clip; ``sqnr_db`` by
    granularity; ``mse_range_gain_db``: what clipping at the mse-best range would add to the SQNR of this scheme."""

    min: float
    max: float
    mean: float
    std: float
    kurtosis: float
    outlier_ratio: float
    zeroed_ratio: float
    saturated_ratio: float
    sqnr_db: dict[str, float]
    mse_range_gain_db: float | None = None
    histogram: Histogram


class OutlierChannel(Resource):
    """An input channel far larger than the rest: ``ratio`` is its largest magnitude over the median channel's."""

    channel: int
    max_abs: float
    ratio: float


class ActivationStats(Resource):
    """The layer's inputs in the float model, on the evaluation data. ``percentiles`` by name (``"99.9"``);
    ``saturated_ratio``: share beyond the fixed range of a static layer; ``drift``: how far the evaluation data lies
    from the calibration data, as the largest distance between the two cumulative distributions (Kolmogorov and
    Smirnov), 0 to 1; null without calibration data of its own."""

    min: float
    max: float
    mean: float
    std: float
    percentiles: dict[str, float]
    outlier_channels: tuple[OutlierChannel, ...]
    saturated_ratio: float | None = None
    drift: float | None = None
    histogram: Histogram


class TargetSaturation(Resource):
    """The layer's integer sums on one kind of CPU: the share of u8*s8 pairs that int16 clamps, and the SQNR of the
    layer's output against float then."""

    saturated_ratio: float
    output_sqnr_db: float


class LayerError(Resource):
    """``output_sqnr_db``: the quantized layer's own output against float on the same input; ``accumulated_sqnr_db``:
    its output in the quantized model against the float model, all errors before it included; ``sensitivity``: what the
    model loses if only this layer is quantized, as the power of its output's error relative to its output's;
    ``spared_gain_db``: what the model's output SQNR gains if only this layer stays float."""

    output_sqnr_db: float | None
    accumulated_sqnr_db: float | None = None
    sensitivity: float | None = None
    spared_gain_db: float | None = None


class LayerReport(Resource):
    """One row of the layer table. ``shape`` is the weight's; ``macs`` are for one sample; ``calls`` counts the uses.
    ``requested`` by the spec, ``quantized`` with ``scheme`` in the graph, ``executed`` by the profiler; ``saturation``
    by kind of CPU: avx2, avx512, vnni."""

    name: str
    type: str
    op: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    calls: int
    requested: Requested | None = None
    quantized: bool
    scheme: Scheme | None
    executed: str | None
    execution: Execution | None = None
    reason: Reason | None
    eager: EagerVerdict
    weights: WeightStats | None
    activations: ActivationStats | None = None
    saturation: dict[str, TargetSaturation] | None = None
    error: LayerError | None


class Product(Resource):
    """A product of two activations (attention scores): it has no weight to quantize, and is not part of any count."""

    name: str
    type: str
    op: str
    macs: int | None


class SensitivitySummary(Resource):
    """How ``error.sensitivity`` was found. ``passes``: what it cost, in passes of the float model over ``samples``."""

    method: Literal["estimate", "brute_force"]
    samples: int
    passes: float


class Convergence(Resource):
    """After ``samples`` calibration samples, the share of the final ranges that is reached (the mean over layers)."""

    samples: int
    range_share: float


class CalibrationReport(Resource):
    """The calibration data. ``recommended_samples``: where the ranges settled; null where they had not.
    ``constant_inputs`` and ``non_finite_inputs`` name arrays."""

    samples: int
    recommended_samples: int | None
    duplicates: int
    constant_inputs: tuple[str, ...]
    non_finite_inputs: tuple[str, ...]
    convergence: tuple[Convergence, ...]


class Finding(Resource):
    """Something to know or to act on. ``patch``: a JSON merge patch for the job spec that fixes it."""

    severity: Literal["info", "warning", "error"]
    code: str
    layer: str | None = None
    message: str
    evidence: dict[str, Any] = Field(default_factory=dict)
    remedy: str | None = None
    patch: dict[str, Any] | None = None


class LoaderOutput(Resource):
    """What one documented way to load a file gave, against the uploaded program on the evaluation data."""

    sqnr_db: float
    max_abs_error: float


class ReportArtifact(Resource):
    """A delivered file. ``verified``: it was loaded in a fresh process, ran, and agreed with the engine. ``output`` is
    null for a file that holds weights and no program: each weight was rebuilt from it and compared instead.
    ``loaders``: every documented way to load it, by name."""

    name: str
    kind: str
    size: int
    sha256: str
    verified: bool
    output: OutputSimilarity | None
    loaders: dict[str, LoaderOutput] = Field(default_factory=dict)


class Provenance(Resource):
    """What is needed to reproduce these numbers."""

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
    """``GET /jobs/{id}/report``. ``patch``: all findings' patches combined into one; null without any."""

    job: str
    model: ReportModel
    spec: JobSpec
    verdict: Verdict
    gates: tuple[Gate, ...]
    coverage: Coverage
    size: Size
    accuracy: Accuracy | None
    latency: Latency | None
    sensitivity: SensitivitySummary | None = None
    calibration: CalibrationReport | None = None
    layers: tuple[LayerReport, ...]
    products: tuple[Product, ...]
    findings: tuple[Finding, ...]
    patch: dict[str, Any] | None = None
    artifacts: tuple[ReportArtifact, ...]
    provenance: Provenance
