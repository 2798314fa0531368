"""Why a layer is as it is: one function a code, each returning the ``Reason`` with its evidence and its remedy.

``eager_verdict`` says what ``torch.ao.quantization.quantize_dynamic(model)`` would do with a layer, from the graph
alone. Its rules were checked against that very call; a test repeats the comparison layer by layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind

from fewbit.report import EagerVerdict
from fewbit.resources import Reason
from fewbit.spec import Weights
from workers.engine.layers import Layer
from workers.engine.program import layer_path, module_classes

EAGER_RECURRENT = frozenset(
    {"torch.nn.LSTM", "torch.nn.GRU", "torch.nn.LSTMCell", "torch.nn.GRUCell", "torch.nn.RNNCell"}
)


# --- Why this service leaves a layer float ----------------------------------------------------------------------------


def excluded_by_user(pattern: str, index: int) -> Reason:
    return Reason(
        code="excluded-by-user",
        message=f"The job's layers[{index}] (match {pattern!r}) says quantize: false.",
        evidence={"match": pattern, "index": index},
        remedy="Drop that entry of `layers`, or let a later entry match this layer with quantize: true.",
    )


def analyze_only() -> Reason:
    return Reason(
        code="analyze-only",
        message="method: analyze looks at the model and quantizes nothing. This layer can be quantized.",
        remedy="Post the job with method: dynamic.",
        patch={"method": "dynamic"},
    )


def unquantizable(layer: Layer) -> Reason | None:
    """Why no job can quantize this layer; None when one can."""
    checks = (_opaque, _input_dtype, _shape, _layout, _nan_inf)
    return next((reason for check in checks if (reason := check(layer)) is not None), None)


def group_misfit(layer: Layer, weights: Weights) -> Reason | None:
    """Why these settings do not fit the layer's shape; None when they do."""
    summed = max(layer.shape[axis] for axis in layer.operands[0].reduce)
    if weights.granularity == "per_group" and weights.group_size and summed % weights.group_size:
        return Reason(
            code="shape-constraint",
            message=f"group_size {weights.group_size} does not divide the {summed} weights that one output sums over.",
            evidence={"group_size": weights.group_size, "in_features": summed},
            remedy="Take a group_size that divides it, or per_channel for this layer.",
            patch={"layers": [{"match": layer.name, "weights": {"granularity": "per_channel"}}]},
        )
    if weights.dtype == "int4" and any(operand.value.shape[-1] % 2 for operand in layer.operands):
        return Reason(
            code="shape-constraint",
            message=f"int4 weights are stored two to a byte along the last axis, which has {layer.shape[-1]}.",
            evidence={"shape": list(layer.shape)},
            remedy="Take int8 for this layer.",
            patch={"layers": [{"match": layer.name, "weights": {"dtype": "int8"}}]},
        )
    return None


def _opaque(layer: Layer) -> Reason | None:
    if layer.kind != "opaque":
        return None
    return Reason(
        code="opaque-op",
        message=f"The weight goes into {layer.op}, a custom operator: what it computes is not in the graph.",
        evidence={"op": layer.op},
        remedy="Give the operator a decomposition, or write it in PyTorch, and export again.",
    )


def _input_dtype(layer: Layer) -> Reason | None:
    if layer.weight.dtype.is_floating_point:
        return None
    if layer.weight.dtype.is_complex:
        return Reason(
            code="dtype",
            message=f"The weight is {_dtype(layer)}: there are no integer kernels for complex numbers.",
            evidence={"dtype": _dtype(layer)},
            remedy="Compute with real and imaginary parts as two real layers, or leave it float.",
        )
    return Reason(
        code="input-dtype",
        message=f"The weight is {_dtype(layer)}: there is no float range to scale.",
        evidence={"dtype": _dtype(layer)},
        remedy="Nothing to do: an integer layer is already exact.",
    )


def _shape(layer: Layer) -> Reason | None:
    if layer.weight.numel():
        return None
    return Reason(
        code="shape",
        message=f"The weight is {' x '.join(map(str, layer.shape))}: there is nothing to quantize.",
        evidence={"shape": list(layer.shape)},
        remedy="Nothing to do.",
    )


def _layout(layer: Layer) -> Reason | None:
    if layer.weight.layout is torch.strided:
        return None
    return Reason(
        code="layout",
        message=f"The weight's layout is {layer.weight.layout}: there is no int8 kernel for it.",
        evidence={"layout": str(layer.weight.layout)},
        remedy="Call .to_dense() on the weight before exporting.",
    )


def _nan_inf(layer: Layer) -> Reason | None:
    bad = sum(int((~torch.isfinite(operand.value)).sum()) for operand in layer.operands)
    if not bad:
        return None
    return Reason(
        code="nan-inf",
        message=f"{bad} of {layer.parameters} weights are NaN or infinite: no scale fits them.",
        evidence={"non_finite": bad},
        remedy="Find where training produced them; clamp or retrain the layer, and export again.",
    )


# --- What plain quantize_dynamic would do -----------------------------------------------------------------------------


def eager_verdict(layer: Layer) -> EagerVerdict:
    """What ``quantize_dynamic(model)`` with its default arguments would do with this layer, and why."""
    if layer.type in EAGER_RECURRENT and layer.kind == "recurrent":
        path, kind = layer_path(layer.uses[0].node)
        return EagerVerdict(quantized=True) if path else _left_float(_root(kind))
    if layer.kind not in ("linear", "nested"):
        return _left_float(_eager_not_linear(layer))
    path, kind = layer_path(layer.uses[0].node) if layer.kind == "linear" else (layer.name, layer.type)
    if kind == "torch.nn.Linear":
        return _eager_linear(layer, path)
    return _left_float(_eager_other_class(layer, kind))


def _left_float(reason: Reason) -> EagerVerdict:
    return EagerVerdict(quantized=False, reason=reason)


def _eager_linear(layer: Layer, path: str) -> EagerVerdict:
    if path == "":
        return _left_float(_root("torch.nn.Linear"))
    if layer.weight.dtype is not torch.float32:
        return EagerVerdict(quantized=True, reason=Reason(
            code="dtype",
            message=f"Swapped, but the {_dtype(layer)} model then fails at run time: the int8 kernel takes float32.",
            evidence={"dtype": _dtype(layer)},
            remedy="model.float() before quantize_dynamic.",
        ))  # fmt: skip
    if _in_encoder_layer(layer.uses[0].node):
        return EagerVerdict(quantized=True, reason=Reason(
            code="fastpath",
            message="Swapped, but the model no longer runs in eval under no_grad: the fast path of "
                    "nn.TransformerEncoderLayer reads linear1.weight, which is now a method.",
            evidence={"module": "torch.nn.TransformerEncoderLayer"},
            remedy="torch.backends.mha.set_fastpath_enabled(False) before calling the model.",
        ))  # fmt: skip
    return EagerVerdict(quantized=True)


def _root(kind: str) -> Reason:
    return Reason(
        code="root-module",
        message=f"The model itself is this {kind.removeprefix('torch.')}. convert() only rebinds children "
        "(module._modules[name] = new), and the root is nobody's child.",
        evidence={"type": kind, "path": ""},
        remedy="Wrap it: quantize_dynamic(nn.Sequential(model)).",
    )


def _eager_other_class(layer: Layer, kind: str) -> Reason:
    if kind in ("torch.nn.MultiheadAttention", "torch.nn.NonDynamicallyQuantizableLinear"):
        return _eager_attention(layer)
    if ".parametrizations." in "".join(source.name for source in layer.sources) or "parametri" in kind.lower():
        return _eager("parametrized", "The weight is computed by a parametrization: from_float asserts the exact type.",
                      "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')", type=kind)  # fmt: skip
    if layer.sources[0].kind is not InputKind.PARAMETER:
        return _eager_no_parameter(layer, kind)
    if kind.endswith("Linear") and layer.op == "aten.linear":
        return _eager("subclass", f"{kind} is not exactly torch.nn.Linear, and quantize_dynamic compares exact types.",
                      "module.__class__ = torch.nn.Linear, when its forward is unchanged.", type=kind)  # fmt: skip
    if kind.rsplit(".", 1)[-1].endswith(("Linear", "Conv1D", "Dense")):
        return _eager("lookalike", f"{kind} does a linear's work, but its type is in no swap table.",
                      "Rebuild it as torch.nn.Linear(weight.t().contiguous()).", type=kind)  # fmt: skip
    return _eager("functional", f"The product is {layer.op} on a bare parameter of {kind or 'the model'}: "
                  "there is no module to swap.", "Make it an nn.Linear.", op=layer.op, type=kind)  # fmt: skip


def _eager_attention(layer: Layer) -> Reason:
    if layer.name.endswith("out_proj"):
        return _eager("mha", "nn.MultiheadAttention's out_proj is a NonDynamicallyQuantizableLinear: its type is "
                      "in no swap table, because the attention reads its weight directly.",
                      "Write the attention with nn.Linear layers for q, k, v and out.",
                      type="torch.nn.modules.linear.NonDynamicallyQuantizableLinear")  # fmt: skip
    return _eager("mha", "nn.MultiheadAttention keeps its in_proj as a bare Parameter, not as a module: "
                  "there is nothing to swap.", "Write the attention with nn.Linear layers for q, k, v and out.",
                  parameter=layer.sources[0].name)  # fmt: skip


def _eager_no_parameter(layer: Layer, kind: str) -> Reason:
    if layer.name.startswith("lifted_tensor"):
        return _eager("unregistered", "The weight belongs to a module kept in a plain list, dict or closure: "
                      "named_children() cannot reach it.",
                      "Use nn.ModuleList, nn.ModuleDict or an attribute.", type=kind)  # fmt: skip
    return _eager("plain-tensor", "The weight is a plain tensor or a buffer, not a module's parameter.",
                  "Make it an nn.Linear.", tensor=layer.sources[0].name)  # fmt: skip


def _eager_not_linear(layer: Layer) -> Reason:
    codes = {"embedding": "embedding-qconfig", "batched": "param-3d", "einsum": "functional"}
    return _eager(codes.get(layer.kind, "not-linear-type"),
                  f"{layer.type or layer.op} is not among the types quantize_dynamic swaps by default.",
                  "None with quantize_dynamic's default arguments.", type=layer.type, op=layer.op)  # fmt: skip


def _eager(code: str, message: str, remedy: str, **evidence: Any) -> Reason:
    return Reason(code=code, message=message, remedy=remedy, evidence=evidence)


def _in_encoder_layer(node: fx.Node) -> bool:
    return any(kind == "torch.nn.TransformerEncoderLayer" for _, kind in module_classes(node))


def _dtype(layer: Layer) -> str:
    return str(layer.weight.dtype).removeprefix("torch.")
