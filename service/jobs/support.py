"""Parts of the contract that this release does not support yet: refused by name, with the alternatives."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from fewbit.contract import capabilities as can
from fewbit.contract import metrics
from fewbit.contract.problems import FieldError
from fewbit.contract.spec import Activations, JobSpec, Weights, WeightsOverride

EAGER_METHODS = ("dynamic", "static")
EAGER_FORMATS: tuple[str, ...] = ("transformers", "module")  # those that hold an nn.Module


def resolve_defaults(spec: JobSpec) -> JobSpec:
    """The spec as it is stored: what was left out, and depends on the backend, filled in. Only TorchScript can hold
    what torch.ao makes, and its dynamic default is one scale for a whole weight."""
    if spec.backend != "eager":
        return spec
    changes: dict[str, object] = {}
    if "artifacts" not in spec.model_fields_set:
        changes["artifacts"] = ("torchscript",)
    if spec.method == "dynamic" and "granularity" not in spec.weights.model_fields_set:
        changes["weights"] = spec.weights.model_copy(update={"granularity": "per_tensor"})
    return spec.model_copy(update=changes)


def unsuited(spec: JobSpec, format: str) -> Iterator[FieldError]:
    """What this backend cannot do with an upload of this format."""
    if spec.backend == "eager" and format not in EAGER_FORMATS:
        message = (
            f"backend eager replaces modules, and a {format} upload holds none any more: it is a graph. Leave backend "
            "out, or upload the model as a Transformers folder or, if it is made of torch.nn classes only, with "
            "torch.save(model, path)."
        )
        yield FieldError(pointer="/backend", code="backend-needs-module", message=message)


def unsupported(spec: JobSpec) -> Iterator[FieldError]:
    """One error for each field that asks for too much."""
    yield from _one_of("/method", spec.method, can.METHODS)
    yield from _one_of("/backend", spec.backend, can.BACKENDS)
    yield from _integer_weights("/weights", spec.weights, spec)
    for index, rule in enumerate(spec.layers):
        if rule.weights is not None:
            yield from _integer_weights(f"/layers/{index}/weights", rule.weights, spec)
    for index, kind in enumerate(spec.artifacts):
        yield from _one_of(f"/artifacts/{index}", kind, can.ARTIFACT_KINDS)
    if spec.backend == "eager":
        yield from _eager(spec)
    yield from _without_data(spec)
    yield from _absent(spec)
    yield from _metrics(spec)


def _integer_weights(where: str, weights: Weights | WeightsOverride, spec: JobSpec) -> Iterator[FieldError]:
    """The int8 kernels multiply int8 weights with one scale a channel; anything finer is for weights alone."""
    if spec.method not in ("dynamic", "static"):
        return
    remedy = "Use method weight_only, or leave the field out."
    if weights.dtype == "int4":
        message = f"int4 weights have no int8 kernel: method {spec.method} cannot multiply them. {remedy}"
        yield _unsupported(f"{where}/dtype", message)
    if weights.granularity == "per_group":
        message = f"The int8 kernels take one scale a channel: method {spec.method} cannot group. {remedy}"
        yield _unsupported(f"{where}/granularity", message)


def _eager(spec: JobSpec) -> Iterator[FieldError]:
    """torch.ao's defaults, and which layers they are applied to: the rest is the graph backend's."""
    remedy = "Leave the field out, or post the job with backend graph."
    if spec.method in can.METHODS and spec.method not in EAGER_METHODS:
        yield _unsupported("/method", f"backend eager has the methods {_listed(EAGER_METHODS)}. {remedy}")
    for index, kind in enumerate(spec.artifacts if "artifacts" in spec.model_fields_set else ()):
        if kind != "torchscript":
            message = f"What torch.ao makes can be written as torchscript only, not as {kind}. {remedy}"
            yield _unsupported(f"/artifacts/{index}", message)
    for pointer in _beyond_defaults(spec):
        yield _unsupported(pointer, f"{pointer[1:].replace('/', '.')}: torch.ao's default is not this. {remedy}")


def _beyond_defaults(spec: JobSpec) -> Iterator[str]:
    """The fields that ask torch.ao for other arithmetic than its own."""
    asked = {
        "/weights/range": spec.weights.range != "minmax",
        "/weights/granularity": spec.method == "static" and spec.weights.granularity == "per_tensor",
        "/activations/dtype": spec.activations.dtype != Activations().dtype,
        "/activations/range": spec.method == "static" and spec.activations.range != Activations().range,
        "/smooth": spec.smooth is not None,
        "/bias_correction": spec.bias_correction,
        "/target": spec.target == "arm",
    }
    yield from (pointer for pointer, is_asked in asked.items() if is_asked)
    for index, rule in enumerate(spec.layers):
        if rule.weights is not None:
            yield f"/layers/{index}/weights"
        if rule.activations is not None:
            yield f"/layers/{index}/activations"


def _without_data(spec: JobSpec) -> Iterator[FieldError]:
    if spec.method == "static" and spec.calibration is None and spec.evaluation is None:
        message = (
            "method static fixes activation ranges on data, and the job names none: "
            '"calibration": {"dataset": "dst_..."}, from POST /datasets. method dynamic needs none.'
        )
        yield FieldError(pointer="/calibration", code="calibration-needed", message=message)


def _absent(spec: JobSpec) -> Iterator[FieldError]:
    asked = {
        "auto": spec.auto is not None,
    }
    for field in (name for name, is_asked in asked.items() if is_asked):
        yield _unsupported(f"/{field}", f"{field} is not part of this release. Leave the field out.")


def _metrics(spec: JobSpec) -> Iterator[FieldError]:
    for index, metric in enumerate(spec.evaluation.metrics if spec.evaluation else ()):
        yield from _metric(f"/evaluation/metrics/{index}", metric)
    for metric in spec.gates.max_drop or {}:
        escaped = metric.replace("~", "~0").replace("/", "~1")
        yield from _metric(f"/gates/max_drop/{escaped}", metric)


def _metric(where: str, name: str) -> Iterator[FieldError]:
    if metrics.is_known(name):
        return
    if metrics.base(name) in can.METRICS:
        message = f"{name}: a cut-off is a whole number behind an @, as in retrieval_recall@10, and goes with "
        yield _unsupported(where, f"{message}{_listed(metrics.WITH_CUTOFF)}.")
        return
    near = metrics.near(name)
    hint = f"Near it: {_listed(near)}." if near else f"Available: {_listed(can.METRICS)}."
    yield _unsupported(where, f"{name} is not part of this release. {hint} GET /capabilities lists all metrics.")


def _one_of(where: str, value: str | None, available: Collection[str]) -> Iterator[FieldError]:
    if value is not None and value not in available:
        yield _unsupported(where, f"{value} is not part of this release. Available: {_listed(sorted(available))}.")


def _unsupported(where: str, message: str) -> FieldError:
    return FieldError(pointer=where, code="unsupported", message=message)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
