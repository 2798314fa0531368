"""What ``torch.ao.quantization.quantize_dynamic(model)``, with its defaults, would do with a layer, told by the graph.

Every rule was checked against that call, and a test repeats the comparison layer by layer. ``quantized`` means that the
module of the call is replaced. A reason next to it says why the replacement does not work; if it works, there is none.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind

from fewbit.contract.report import EagerVerdict
from fewbit.contract.resources import Reason
from fewbit.runtime.kernels import MAX_IN_FEATURES
from fewbit.runtime.program import rank
from workers.engine.graph.layers import Layer
from workers.engine.graph.ops import PARTS_AND_VIEWS
from workers.engine.graph.program import layer_path, module_classes
from workers.engine.graph.source_lines import Frame, frames

LINEAR = "torch.nn.Linear"
RECURRENT = frozenset({"torch.nn.LSTM", "torch.nn.GRU", "torch.nn.LSTMCell", "torch.nn.GRUCell", "torch.nn.RNNCell"})
ATTENTION = ("torch.nn.MultiheadAttention", "torch.nn.NonDynamicallyQuantizableLinear")
TABLES = ("torch.nn.Embedding", "torch.nn.EmbeddingBag")
EPS = torch.finfo(torch.float32).eps  # the smallest scale of torch.ao's observers
FEWEST_LEVELS = 8  # of 127: below, little more than the signs of the weights is left
ZEROED_TOO_MANY = 0.5
OLD_PARAMETRIZATIONS = (".weight_orig", ".weight_mask", ".weight_v", ".weight_g")
LINEAR_SOURCE = "torch/nn/modules/linear.py"
_BY_KEYWORD = re.compile(r"\(\s*input\s*=")
_FAILS = "Swapped, but the model then fails at run time: "


def predict_quantize_dynamic(layer: Layer) -> EagerVerdict:
    """What ``quantize_dynamic`` would do with this layer, and why."""
    path, kind = _calling_module(layer)
    if kind in RECURRENT and layer.kind in ("recurrent", "linear"):
        return _recurrent(layer, path, kind)
    if layer.kind == "nested":
        return _inside_region(layer)
    if layer.kind != "linear":
        return _left_float(_other_operator(layer))
    if kind == LINEAR:
        return _stock_linear(layer, path)
    return _other_class(layer, path, kind)


def _calling_module(layer: Layer) -> tuple[str, str]:
    """(path, class) of the module that calls the layer: an nn.Linear if there is one, else the first."""
    modules = [layer_path(use.node) for use in layer.uses]
    return next((module for module in modules if module[1] == LINEAR), modules[0])


def _left_float(reason: Reason) -> EagerVerdict:
    return EagerVerdict(quantized=False, reason=reason)


def _swapped_but(code: str, message: str, remedy: str, **evidence: Any) -> EagerVerdict:
    return EagerVerdict(quantized=True, reason=_reason(code, message, remedy, **evidence))


def _reason(code: str, message: str, remedy: str, **evidence: Any) -> Reason:
    return Reason(code=code, message=message, remedy=remedy, evidence=evidence)


# --- nn.Linear: replaced, unless it is not a child of any module ------------------------------------------------------


def _stock_linear(layer: Layer, path: str) -> EagerVerdict:
    if path == "":
        return _left_float(_root_module(LINEAR))
    first = _first_registered_path(layer, path)
    if first != path:
        return _left_float(
            _reason(
                "alias",
                f"The module is also registered as {first}, and replaced only there: named_children() lists a module "
                f"of a parent once. This call, by the name {path}, stays float.",
                "Keep one name; call the layer by it.",
                registered_as=first,
                called_as=path,
            )
        )
    checks = (
        _hooked_parametrization,
        _other_dtype,
        _weight_read_as_attribute,
        _keyword_call,
        _unsupported_shape,
        _fastpath,
        _unsuitable_numbers,
    )
    return next((verdict for check in checks if (verdict := check(layer)) is not None), EagerVerdict(quantized=True))


def _first_registered_path(layer: Layer, path: str) -> str:
    parent = path.rpartition(".")[0]
    source = next((source for source in layer.sources if path in source.modules), None)
    siblings = [module for module in source.modules if module.rpartition(".")[0] == parent] if source else []
    return siblings[0] if siblings else path


def _root_module(kind: str) -> Reason:
    return _reason(
        "root-module",
        f"The model itself is this {kind.removeprefix('torch.')}. convert() only rebinds children "
        "(module._modules[name] = new), and the root is not a child.",
        "Wrap it: quantize_dynamic(nn.Sequential(model)).",
        path="",
    )


def _hooked_parametrization(layer: Layer) -> EagerVerdict | None:
    hooked = next((source.name for source in layer.sources if source.name.endswith(OLD_PARAMETRIZATIONS)), None)
    if hooked is None:
        return None
    return _swapped_but(
        "parametrized",
        _FAILS + f"the hook that computes the weight reads {hooked}, which is gone.",
        "torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove, before quantizing.",
        parameter=hooked,
    )


def _other_dtype(layer: Layer) -> EagerVerdict | None:
    dtype = layer.sources[0].value.dtype  # as stored: under autocast, the call sees another
    if dtype is torch.float32:
        return None
    return _swapped_but(
        "dtype",
        _FAILS + f"the weight is {_dtype_name(dtype)}, and the int8 kernel takes only float32.",
        "model.float() before quantize_dynamic.",
    )


def _weight_read_as_attribute(layer: Layer) -> EagerVerdict | None:
    """F.linear(x, self.fc.weight) beside self.fc(x)."""
    elsewhere = next((use.node for use in layer.uses if _reads_weight(use.node)), None)
    if elsewhere is None:
        return None
    return _swapped_but(
        "weight-attr-read",
        _FAILS + "its weight is also read as an attribute, which is then a method.",
        "Call the module instead of reading its weight.",
        read_in=layer_path(elsewhere)[0] or "the model",
    )


def _reads_weight(node: fx.Node) -> bool:
    calls = frames(node)
    return layer_path(node)[1] != LINEAR and bool(calls) and not calls[-1].file.endswith(LINEAR_SOURCE)


def _keyword_call(layer: Layer) -> EagerVerdict | None:
    frames_of_calls = filter(None, (_calling_frame(use.node) for use in layer.uses))
    frame = next((frame for frame in frames_of_calls if _BY_KEYWORD.search(frame.code)), None)
    if frame is None:
        return None
    return _swapped_but(
        "signature",
        _FAILS + "it is called with input=, and the replacement names its argument x.",
        "Give the input by position.",
        call=frame.shown,
    )


def _calling_frame(node: fx.Node) -> Frame | None:
    calls = frames(node)
    inside = len(calls) > 1 and calls[-1].file.endswith(LINEAR_SOURCE)
    return calls[-2] if inside else None


def _unsupported_shape(layer: Layer) -> EagerVerdict | None:
    if not layer.weight.numel():
        return _swapped_but(
            "shape", "Swapped, but a weight without elements has no scale: the output is undefined.", "Drop the layer."
        )
    if any(rank(use.input) == 1 for use in layer.uses):
        return _swapped_but(
            "shape",
            _FAILS + "the int8 kernel takes inputs of two dimensions or more, and this has one.",
            "Give it x.unsqueeze(0), and take .squeeze(0) of the result.",
            input_dims=1,
        )
    if layer.shape[1] > MAX_IN_FEATURES:
        return _swapped_but(
            "shape",
            f"Swapped, but sums over {layer.shape[1]} products of one sign leave 32 bits: above "
            f"{MAX_IN_FEATURES} in_features they can wrap silently.",
            "Split the layer along in_features.",
            in_features=layer.shape[1],
        )
    return None


def _fastpath(layer: Layer) -> EagerVerdict | None:
    classes = (kind for use in layer.uses for _, kind in module_classes(use.node))
    if "torch.nn.TransformerEncoderLayer" not in classes:
        return None
    return _swapped_but(
        "fastpath",
        "Swapped, but the model no longer runs in eval under no_grad: the fast path of "
        "nn.TransformerEncoderLayer reads linear1.weight, which is now a method.",
        "torch.backends.mha.set_fastpath_enabled(False) before calling the model.",
        module="torch.nn.TransformerEncoderLayer",
    )


def _unsuitable_numbers(layer: Layer) -> EagerVerdict | None:
    sizes = layer.weight.abs()
    if not bool(torch.isfinite(sizes).all()):
        return _swapped_but(
            "nan-inf",
            "Swapped silently; the output is NaN, and the next int8 layer raises.",
            "Find where training produced them; clamp or retrain the layer.",
            non_finite=int((~torch.isfinite(sizes)).sum()),
        )
    largest = float(sizes.max())
    if 0 < largest / EPS < FEWEST_LEVELS:
        return _swapped_but(
            "numeric",
            f"Swapped, but the largest weight is {largest:.1e} and the scale never falls below "
            f"{EPS:.1e}: the weights round to {largest / EPS:.0f} levels.",
            "Multiply the weights by a power of two, and divide the output by it.",
            max_abs=largest,
            least_scale=EPS,
        )
    zeroed = float((sizes < largest / 255).sum() - (sizes == 0).sum()) / max(1, int((sizes > 0).sum()))
    if zeroed > ZEROED_TOO_MANY:
        return _swapped_but(
            "outlier",
            f"Swapped, but with one scale for the whole weight, {zeroed:.0%} of it rounds to "
            "zero: a few large weights set that scale.",
            "per_channel_dynamic_qconfig, or clip the weight.",
            zeroed_ratio=round(zeroed, 4),
            max_abs=largest,
        )
    return None


# --- All other classes ------------------------------------------------------------------------------------------------


def _recurrent(layer: Layer, path: str, kind: str) -> EagerVerdict:
    if not path:
        return _left_float(_root_module(kind))
    if layer.kind == "linear" or kind.endswith("Cell"):  # decomposed: the graph no longer shows the module's settings
        return EagerVerdict(quantized=True)
    names = [source.name for operand in layer.operands for source in operand.sources]
    if any("weight_hr" in name for name in names):
        return _swapped_but(
            "not-linear-type",
            _FAILS + "the int8 LSTM does not support a projection (proj_size).",
            "Project with an nn.Linear behind it.",
        )
    if any(_is_unbatched(use.input, path) for use in layer.uses):
        return _swapped_but(
            "not-linear-type",
            _FAILS + "the int8 kernel takes only inputs with a batch.",
            "Give it x.unsqueeze(1), and take .squeeze(1) of the result.",
        )
    if len(layer.uses[0].node.args) > 3 and layer.uses[0].node.args[3] is False:
        return _left_float(
            _reason(
                "not-linear-type",
                f"quantize_dynamic fails for the whole model: {kind} has no bias, and from_float asserts one.",
                "Give it a bias of zeros.",
            )
        )
    return EagerVerdict(quantized=True)


def _is_unbatched(node: fx.Node, path: str) -> bool:
    """Whether the input has no batch: nn.LSTM then adds a batch of one."""
    return rank(node) == 2 or (node.target is torch.ops.aten.unsqueeze.default and layer_path(node)[0] == path)


def _inside_region(layer: Layer) -> EagerVerdict:
    region = str(layer.uses[0].node.target)
    quantized = layer.op == "aten.linear" and layer.sources[0].name.endswith(".weight")
    reason = _reason(
        "higher-order-op",
        f"The layer is inside {region}, which must trace what it calls, and cannot "
        "trace int8 modules: the model fails once anything in it is replaced.",
        "Write the branch or loop without it.",
        region=region,
    )
    return EagerVerdict(quantized=quantized, reason=reason)


def _other_class(layer: Layer, path: str, kind: str) -> EagerVerdict:
    if kind in ATTENTION:
        return _left_float(_attention_reason(layer))
    if kind.startswith("torch.jit."):
        return _left_float(_script_child(path))
    if ".parametrizations." in "".join(source.name for source in layer.sources) or "parametri" in kind.lower():
        return _left_float(_parametrized())
    if layer.sources[0].kind is not InputKind.PARAMETER:
        return _left_float(_not_a_parameter(layer))
    return _left_float(_parameter_of_other_class(layer, path, kind))


def _script_child(path: str) -> Reason:
    return _reason(
        "script-child",
        f"{path} is a ScriptModule: its type is not nn.Linear's, and there are no Python modules inside.",
        "Quantize first, script last.",
    )


def _parametrized() -> Reason:
    return _reason(
        "parametrized",
        "The weight is computed by a parametrization: from_float asserts the exact type, and quantize_dynamic fails "
        "for the whole model.",
        "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')",
    )


def _parameter_of_other_class(layer: Layer, path: str, kind: str) -> Reason:
    node, owner = layer.uses[0].node, layer.sources[0].name.rpartition(".")[0]
    if _is_computed_weight(layer):
        return _computed_weight(layer)
    calls = frames(node)
    own_forward = bool(calls) and calls[-1].file.endswith(LINEAR_SOURCE)
    if own_forward and owner != path:
        return _called_by_reference(owner)
    if own_forward or (owner == path and kind.endswith("Linear") and layer.op == "aten.linear"):
        return _subclass(kind)
    if owner == path and path and layer.sources[0].name.endswith("weight"):
        return _lookalike(kind)
    if owner != path and layer.sources[0].name.endswith(".weight") and _class_at(node.graph, owner) not in TABLES:
        return _weight_read_from_outside(owner)
    return _bare_parameter(layer, kind)


def _computed_weight(layer: Layer) -> Reason:
    return _reason(
        "computed-weight",
        f"The weight is computed from {_source_names(layer)} in every forward: there is no module to swap.",
        "Compute it once, and put it into an nn.Linear.",
    )


def _called_by_reference(owner: str) -> Reason:
    return _reason(
        "alias",
        f"{owner} is replaced where it is registered, but the model calls its float forward through another reference, "
        "such as a bound method.",
        "Call the module by its name.",
    )


def _subclass(kind: str) -> Reason:
    return _reason(
        "subclass",
        f"{kind} is not exactly torch.nn.Linear, and quantize_dynamic compares exact types.",
        "module.__class__ = torch.nn.Linear, if its forward is unchanged.",
    )


def _lookalike(kind: str) -> Reason:
    return _reason(
        "lookalike",
        f"{kind} does a linear's work, but its type is in no swap table.",
        "Rebuild it as an nn.Linear with a contiguous [out, in] weight.",
    )


def _weight_read_from_outside(owner: str) -> Reason:
    return _reason(
        "weight-attr-read",
        f"The model reads {owner}.weight instead of calling {owner}. If that is an nn.Linear, it is replaced, and its "
        "weight is then a method.",
        f"Call {owner}.",
    )


def _bare_parameter(layer: Layer, kind: str) -> Reason:
    return _reason(
        "functional",
        f"The product is {layer.op} on a bare parameter of {kind or 'the model'}: there is no module to swap.",
        "Make it an nn.Linear.",
    )


def _is_computed_weight(layer: Layer) -> bool:
    """Whether anything but views is between the parameters and the product."""
    if len({source.name for source in layer.sources}) > 1:
        return True
    operand = layer.uses[0].operands[0]
    while operand.op == "call_function":
        if operand.target not in PARTS_AND_VIEWS:
            return True
        operand = operand.all_input_nodes[0]
    return False


def _source_names(layer: Layer) -> str:
    return " and ".join(dict.fromkeys(source.name for source in layer.sources))


def _class_at(graph: fx.Graph, path: str) -> str:
    """The class of the module at ``path``, where the graph calls it."""
    return next((kind for node in graph.nodes for at, kind in module_classes(node) if at == path), "")


def _attention_reason(layer: Layer) -> Reason:
    remedy = "Write the attention with nn.Linear layers for q, k, v and out."
    if layer.name.endswith("out_proj"):
        return _reason(
            "mha",
            "nn.MultiheadAttention's out_proj is a NonDynamicallyQuantizableLinear: its type is "
            "in no swap table, because the attention reads its weight directly.",
            remedy,
        )
    return _reason(
        "mha",
        "nn.MultiheadAttention keeps its in_proj as a bare Parameter, not as a module: there is nothing to swap.",
        remedy,
        parameter=layer.sources[0].name,
    )


def _not_a_parameter(layer: Layer) -> Reason:
    if layer.name.startswith("lifted_tensor"):
        return _reason(
            "unregistered",
            "The weight belongs to a module kept in a plain list, dict or closure: named_children() cannot reach it.",
            "Use nn.ModuleList, nn.ModuleDict or an attribute.",
        )
    return _reason(
        "plain-tensor",
        "The weight is a plain tensor or a buffer, not a module's parameter.",
        "Make it an nn.Linear.",
        tensor=layer.sources[0].name,
    )


def _other_operator(layer: Layer) -> Reason:
    codes = {"embedding": "embedding-qconfig", "batched": "param-3d", "einsum": "functional", "opaque": "opaque-op"}
    return _reason(
        codes.get(layer.kind, "not-linear-type"),
        f"{layer.type or layer.op} is not among the types quantize_dynamic swaps by default.",
        "None with quantize_dynamic's default arguments.",
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
