"""The codes of a report's reasons and findings: the closed set, and the places where a code may appear.

``CODES`` is the whole list. Every code has a page in ``docs/reasons/``. Codes without a place cannot be seen in an
upload, or belong to calls of other libraries; they have a page because people search for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["reason", "eager", "finding"]


@dataclass(frozen=True)
class ReasonCode:
    """One entry of the catalogue. ``places``: ``reason`` and ``eager`` of a layer (``layers[].reason``,
    ``layers[].eager.reason``), ``finding`` of the report."""

    code: str
    title: str
    group: str
    places: tuple[Place, ...]


_GROUPS: dict[str, tuple[tuple[str, str, tuple[Place, ...]], ...]] = {
    "The swap never sees it": (
        ("root-module", "The model is the layer itself", ("eager",)),
        ("functional", "A product with a bare parameter", ("eager",)),
        ("param-3d", "One parameter holds many matrices", ("eager",)),
        ("computed-weight", "The weight is an expression", ("eager",)),
        ("subclass", "A subclass of nn.Linear", ("eager",)),
        ("lookalike", "A linear layer of another class", ("eager",)),
        ("not-linear-type", "Not one of the types that are swapped", ("eager",)),
        ("mha", "Inside nn.MultiheadAttention", ("eager",)),
        ("fastpath", "The fast path of nn.TransformerEncoderLayer", ("eager", "finding")),
        ("unregistered", "A module in a plain list, dict or closure", ("eager",)),
        ("alias", "The call goes through another name", ("eager",)),
        ("script-child", "A scripted or traced module inside the model", ("eager",)),
        ("compiled", "The model was compiled first", ()),
        ("wrapper", "DataParallel or DistributedDataParallel around the model", ()),
        ("opaque-op", "The weight goes into a custom operator", ("reason", "eager")),
        ("lazy", "A lazy layer before its first forward", ()),
        ("plain-tensor", "The weight is a plain tensor or a buffer", ("eager",)),
        ("already-converted", "The model was converted to mkldnn", ()),
    ),
    "It is swapped, and the model breaks or silently changes": (
        ("shared", "One module under several parents", ("finding",)),
        ("shared-module", "A second name still calls the float module", ("finding",)),
        ("tied", "Layers that share one weight", ("finding",)),
        ("already-quantized", "The upload is quantized already", ()),
        ("weight-attr-read", "The weight is read as an attribute", ("eager",)),
        ("type-dispatch", "The model asks isinstance(layer, nn.Linear)", ()),
        ("no-parameters", "The model reads its first parameter", ()),
        ("signature", "The layer is called with input=", ("eager",)),
        ("state-lost", "What was attached to the layer is lost", ()),
        ("hooks", "A hook or a replaced forward adds to the layer", ("finding",)),
        ("parametrized", "The weight has a parametrization", ("eager",)),
        ("deepcopy", "The model cannot be copied", ()),
        ("fx-fusion-bug", "FX fuses a relu into every call of the layer", ("finding",)),
        ("not-swapped", "torch.ao left the module in place", ("reason",)),
    ),
    "The call or the job selected something else": (
        ("excluded-by-user", "The job spec leaves it float", ("reason",)),
        ("analyze-only", "The job only analyzes", ("reason",)),
        ("api-misuse", "The result of the call was discarded", ()),
        ("config-no-match", "The names match nothing", ()),
        ("config-scope", "A parent's name covers everything below it", ()),
        ("config-precedence", "A qconfig left on the module wins", ()),
        ("config-error", "The configuration is invalid", ()),
        ("config-dtype", "A dtype that selects nothing", ()),
        ("embedding-qconfig", "Embeddings need a qconfig of their own", ("eager",)),
        ("train-mode", "The model was exported in train mode", ("finding",)),
        ("reload", "int8 weights in a float class", ()),
    ),
    "Dtype, device, layout, shape": (
        ("dtype", "The weight is not float32", ("reason", "eager")),
        ("device", "The weights are on the meta device", ()),
        ("strides", "The weight is not contiguous", ("finding",)),
        ("layout", "A sparse weight", ("reason",)),
        ("input-dtype", "An integer layer", ("reason",)),
        ("shape", "A shape that the kernels do not support", ("reason", "eager")),
        ("shape-constraint", "The settings do not fit the shape", ("reason",)),
        ("backend", "No quantized engine is set", ()),
        ("autograd", "Parameters made under inference_mode", ()),
    ),
    "Numbers: quantized, but wrong": (
        ("nan-inf", "NaN or infinity", ("reason", "eager", "finding")),
        ("outlier", "A few large weights set the scale", ("eager", "finding")),
        ("numeric", "Weights below the observer's smallest scale", ("eager", "finding")),
        ("saturation", "Sums that saturate on CPUs without VNNI", ("finding",)),
        ("low-sqnr", "The layer's own output is far off", ("finding",)),
        ("activation-outlier", "One input channel uses up the levels of the others", ("finding",)),
    ),
    "Capture and lowering": (
        ("autocast", "A layer in an autocast block", ("finding",)),
        ("fusion", "Batch norm folded into the layer", ()),
        ("trace-fail", "The model cannot be captured", ()),
        ("fx-leaf", "FX treats the module as one piece", ("reason",)),
        ("fx-no-pattern", "FX has no static pattern for it", ("reason",)),
        ("higher-order-op", "A layer in a no_grad block, a branch or a loop", ("eager", "finding")),
        ("act-act", "A product of two activations", ("finding",)),
        ("decomposed", "The program was decomposed before it was saved", ("finding",)),
        ("not-lowered", "PT2E leaves inputs of three dimensions in float", ("finding",)),
        ("post-op", "A Python number after the layer", ("finding",)),
        ("unreached", "A layer without a path to an output", ("finding",)),
        ("dynamic-shape", "A free size in three dimensions", ("finding",)),
        ("transform", "vmap in the forward", ()),
    ),
    "Calibration": (
        ("stubs-missing", "Eager static needs its stubs placed by hand", ()),
        ("not-calibrated", "An observer that never ran", ("finding",)),
        ("calibrated-on-evaluation", "Ranges were set on the evaluation data", ("finding",)),
        ("calibration-drift", "Evaluation data differs from calibration data", ("finding",)),
        ("calibration-too-small", "Ranges were still growing", ("finding",)),
        ("duplicate-samples", "Calibration samples are copies", ("finding",)),
        ("constant-input", "An input never changes in calibration", ("finding",)),
        ("non-finite-input", "Calibration data holds NaN or infinity", ("finding",)),
    ),
    "The measurement and the artifacts": (
        ("synthetic-data", "No data was given", ("finding",)),
        ("evaluated-on-calibration", "Closeness was measured on the calibration data", ("finding",)),
        ("metric-not-applicable", "The metric does not fit the output", ("finding",)),
        ("slower-than-float", "The artifact is slower than float", ("finding",)),
        ("larger-than-float", "The artifact is larger than the upload", ("finding",)),
        ("custom-operator", "The artifact calls an operator that torch does not have", ("finding",)),
        ("artifact-not-written", "One artifact kind does not support this model", ("finding",)),
        ("kinds-disagree", "One artifact gives another answer than the others", ("finding",)),
        ("random-in-forward", "The model draws random numbers", ("finding",)),
    ),
}
GROUPS = tuple(_GROUPS)
CODES: dict[str, ReasonCode] = {
    code: ReasonCode(code, title, group, places) for group, rows in _GROUPS.items() for code, title, places in rows
}
