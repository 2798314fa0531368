"""Why this service leaves a layer float: one function per code returns the ``Reason`` with evidence and remedy."""

from __future__ import annotations

import torch

from fewbit.contract.resources import Reason
from fewbit.contract.spec import Weights
from workers.engine.graph.layers import Layer

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
        message="method: analyze only looks at the model. This layer can be quantized.",
        remedy="Post the job with method: dynamic.",
        patch={"method": "dynamic"},
    )


def unquantizable(layer: Layer) -> Reason | None:
    """Why no job can quantize this layer; None when one can."""
    checks = (_opaque_operator, _not_a_float, _empty_weight, _other_layout, _non_finite_weight)
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


def _opaque_operator(layer: Layer) -> Reason | None:
    if layer.kind != "opaque":
        return None
    return Reason(
        code="opaque-op",
        message=f"The weight goes into {layer.op}, a custom operator: what it computes is not in the graph.",
        evidence={"op": layer.op},
        remedy="Give the operator a decomposition, or write it in PyTorch, and export again.",
    )


def _not_a_float(layer: Layer) -> Reason | None:
    if layer.weight.dtype.is_floating_point:
        return None
    if layer.weight.dtype.is_complex:
        return Reason(
            code="dtype",
            message=f"The weight is {_dtype(layer)}: there are no integer kernels for complex numbers.",
            evidence={"dtype": _dtype(layer)},
            remedy="Compute real and imaginary parts as two real layers, or leave it float.",
        )
    return Reason(
        code="input-dtype",
        message=f"The weight is {_dtype(layer)}: there is no float range to scale.",
        evidence={"dtype": _dtype(layer)},
        remedy="Nothing to do: an integer layer is already exact.",
    )


def _empty_weight(layer: Layer) -> Reason | None:
    if layer.weight.numel():
        return None
    return Reason(
        code="shape",
        message=f"The weight is {' x '.join(map(str, layer.shape))}: there is nothing to quantize.",
        evidence={"shape": list(layer.shape)},
        remedy="Nothing to do.",
    )


def _other_layout(layer: Layer) -> Reason | None:
    if layer.weight.layout is torch.strided:
        return None
    return Reason(
        code="layout",
        message=f"The weight's layout is {layer.weight.layout}: there is no int8 kernel for it.",
        evidence={"layout": str(layer.weight.layout)},
        remedy="Call .to_dense() on the weight before exporting.",
    )


def _non_finite_weight(layer: Layer) -> Reason | None:
    bad = sum(int((~torch.isfinite(operand.value)).sum()) for operand in layer.operands)
    if not bad:
        return None
    return Reason(
        code="nan-inf",
        message=f"{bad} of {layer.parameters} weights {'is' if bad == 1 else 'are'} NaN or infinite: no scale fits.",
        evidence={"non_finite": bad},
        remedy="Find where training produced them; clamp or retrain the layer, and export again.",
    )


def _dtype(layer: Layer) -> str:
    return str(layer.weight.dtype).removeprefix("torch.")
