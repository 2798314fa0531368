"""What ``torch.ao.quantization.quantize_dynamic(model)``, called plainly, would do with a layer: from the graph alone.

Every rule was checked against that very call, and a test repeats the comparison layer by layer. ``quantized`` means the
call's module is replaced; a reason beside it says why the replacement does not work. Where it does, there is no reason.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind

from fewbit.contract.report import EagerVerdict
from fewbit.contract.resources import Reason
from fewbit.runtime.kernels import MAX_IN_FEATURES
from fewbit.runtime.program import rank
from workers.engine.graph.layers import Layer
from workers.engine.graph.program import layer_path, module_classes
from workers.engine.graph.source_lines import Frame, frames

LINEAR = "torch.nn.Linear"
RECURRENT = frozenset({"torch.nn.LSTM", "torch.nn.GRU", "torch.nn.LSTMCell", "torch.nn.GRUCell", "torch.nn.RNNCell"})
ATTENTION = ("torch.nn.MultiheadAttention", "torch.nn.NonDynamicallyQuantizableLinear")
TABLES = ("torch.nn.Embedding", "torch.nn.EmbeddingBag")
EPS = torch.finfo(torch.float32).eps  # the least scale of torch.ao's observers
FEWEST_LEVELS = 8  # of 127: below, the weights are hardly more than their signs
ZEROED_TOO_MANY = 0.5
OLD_PARAMETRIZATIONS = (".weight_orig", ".weight_mask", ".weight_v", ".weight_g")
LINEAR_SOURCE = "torch/nn/modules/linear.py"
_BY_KEYWORD = re.compile(r"\(\s*input\s*=")
_FAILS = "Swapped, but the model then fails at run time: "


def eager_verdict(layer: Layer) -> EagerVerdict:
    """What the call would do with this layer, and why."""
    path, kind = _place(layer)
    if kind in RECURRENT and layer.kind in ("recurrent", "linear"):
        return _recurrent(layer, path, kind)
    if layer.kind == "nested":
        return _nested(layer)
    if layer.kind != "linear":
        return _left_float(_not_linear(layer))
    if kind == LINEAR:
        return _linear(layer, path)
    return _other_class(layer, path, kind)


def _place(layer: Layer) -> tuple[str, str]:
    """The module whose layer it is: the first that calls it as its own."""
    places = [layer_path(use.node) for use in layer.uses]
    return next((each for each in places if each[1] == LINEAR), places[0])


def _left_float(reason: Reason) -> EagerVerdict:
    return EagerVerdict(quantized=False, reason=reason)


def _in_vain(code: str, message: str, remedy: str, **evidence: Any) -> EagerVerdict:
    return EagerVerdict(quantized=True, reason=_eager(code, message, remedy, **evidence))


def _eager(code: str, message: str, remedy: str, **evidence: Any) -> Reason:
    return Reason(code=code, message=message, remedy=remedy, evidence=evidence)


# --- nn.Linear: replaced, unless nobody's child -----------------------------------------------------------------------


def _linear(layer: Layer, path: str) -> EagerVerdict:
    if path == "":
        return _left_float(_root(LINEAR))
    first = _registered_first(layer, path)
    if first != path:
        return _left_float(_eager(
            "alias",
            f"The module is registered as {first} too, and replaced there alone: named_children() gives each module of "
            f"a parent once. This call, by the name {path}, stays float.",
            "Keep one name; call the layer by it.", registered_as=first, called_as=path))  # fmt: skip
    checks = (_parametrized_by_hooks, _dtypes, _read_elsewhere, _keyword, _shapes, _fastpath, _numbers)
    return next((found for check in checks if (found := check(layer)) is not None), EagerVerdict(quantized=True))


def _registered_first(layer: Layer, path: str) -> str:
    parent = path.rpartition(".")[0]
    source = next((each for each in layer.sources if path in each.modules), None)
    siblings = [each for each in source.modules if each.rpartition(".")[0] == parent] if source else []
    return siblings[0] if siblings else path


def _root(kind: str) -> Reason:
    return _eager(
        "root-module",
        f"The model itself is this {kind.removeprefix('torch.')}. convert() only rebinds children "
        "(module._modules[name] = new), and the root is nobody's child.",
        "Wrap it: quantize_dynamic(nn.Sequential(model)).", path="")  # fmt: skip


def _parametrized_by_hooks(layer: Layer) -> EagerVerdict | None:
    hooked = next((each.name for each in layer.sources if each.name.endswith(OLD_PARAMETRIZATIONS)), None)
    if hooked is None:
        return None
    return _in_vain("parametrized", _FAILS + f"the hook that computes the weight reads {hooked}, which is gone.",
                    "torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove, before quantizing.",
                    parameter=hooked)  # fmt: skip


def _dtypes(layer: Layer) -> EagerVerdict | None:
    dtype = layer.sources[0].value.dtype  # as stored: under autocast, the call sees another
    if dtype is torch.float32:
        return None
    return _in_vain("dtype", _FAILS + f"the weight is {_name(dtype)}, and the int8 kernel takes float32 alone.",
                    "model.float() before quantize_dynamic.")  # fmt: skip


def _read_elsewhere(layer: Layer) -> EagerVerdict | None:
    """F.linear(x, self.fc.weight) beside self.fc(x)."""
    elsewhere = next((use.node for use in layer.uses if _is_read(use.node)), None)
    if elsewhere is None:
        return None
    return _in_vain("weight-attr-read", _FAILS + "its weight is read as an attribute too, which is then a method.",
                    "Call the module instead of reading its weight.",
                    read_in=layer_path(elsewhere)[0] or "the model")  # fmt: skip


def _is_read(node: fx.Node) -> bool:
    calls = frames(node)
    return layer_path(node)[1] != LINEAR and bool(calls) and not calls[-1].file.endswith(LINEAR_SOURCE)


def _keyword(layer: Layer) -> EagerVerdict | None:
    found = next((each for use in layer.uses if (each := _caller(use.node)) and _BY_KEYWORD.search(each.code)), None)
    if found is None:
        return None
    return _in_vain("signature", _FAILS + "it is called with input=, and the replacement names its argument x.",
                    "Give the input by position.", call=found.shown)  # fmt: skip


def _caller(node: fx.Node) -> Frame | None:
    calls = frames(node)
    inside = len(calls) > 1 and calls[-1].file.endswith(LINEAR_SOURCE)
    return calls[-2] if inside else None


def _shapes(layer: Layer) -> EagerVerdict | None:
    if not layer.weight.numel():
        return _in_vain("shape", "Swapped, but a weight without elements has no scale: the output is not defined.",
                        "Drop the layer.")  # fmt: skip
    if any(rank(use.input) == 1 for use in layer.uses):
        return _in_vain("shape", _FAILS + "the int8 kernel takes inputs of two dimensions or more, and this has one.",
                        "Give it x.unsqueeze(0), and take .squeeze(0) of the result.", input_dims=1)  # fmt: skip
    if layer.shape[1] > MAX_IN_FEATURES:
        return _in_vain("shape", f"Swapped, but sums over {layer.shape[1]} products of one sign leave 32 bits: above "
                        f"{MAX_IN_FEATURES} in_features they can wrap without a word.",
                        "Split the layer along in_features.", in_features=layer.shape[1])  # fmt: skip
    return None


def _fastpath(layer: Layer) -> EagerVerdict | None:
    classes = (kind for use in layer.uses for _, kind in module_classes(use.node))
    if "torch.nn.TransformerEncoderLayer" not in classes:
        return None
    return _in_vain("fastpath", "Swapped, but the model no longer runs in eval under no_grad: the fast path of "
                    "nn.TransformerEncoderLayer reads linear1.weight, which is now a method.",
                    "torch.backends.mha.set_fastpath_enabled(False) before calling the model.",
                    module="torch.nn.TransformerEncoderLayer")  # fmt: skip


def _numbers(layer: Layer) -> EagerVerdict | None:
    sizes = layer.weight.abs()
    if not bool(torch.isfinite(sizes).all()):
        return _in_vain("nan-inf", "Swapped without a word; the output is NaN, and the next int8 layer raises.",
                        "Find where training produced them; clamp or retrain the layer.",
                        non_finite=int((~torch.isfinite(sizes)).sum()))  # fmt: skip
    largest = float(sizes.max())
    if 0 < largest / EPS < FEWEST_LEVELS:
        return _in_vain("numeric", f"Swapped, but the largest weight is {largest:.1e} and the scale never falls below "
                        f"{EPS:.1e}: the weights round to {largest / EPS:.0f} levels.",
                        "Multiply the weights by a power of two, and divide the output by it.",
                        max_abs=largest, least_scale=EPS)  # fmt: skip
    zeroed = float((sizes < largest / 255).sum() - (sizes == 0).sum()) / max(1, int((sizes > 0).sum()))
    if zeroed > ZEROED_TOO_MANY:
        return _in_vain("outlier", f"Swapped, but with one scale for the whole weight, {zeroed:.0%} of it rounds to "
                        "zero: a few large weights set that scale.",
                        "per_channel_dynamic_qconfig, or clip the weight.",
                        zeroed_ratio=round(zeroed, 4), max_abs=largest)  # fmt: skip
    return None


# --- All others -------------------------------------------------------------------------------------------------------


def _recurrent(layer: Layer, path: str, kind: str) -> EagerVerdict:
    if not path:
        return _left_float(_root(kind))
    if layer.kind == "linear" or kind.endswith("Cell"):  # decomposed: what its module was built with is not told
        return EagerVerdict(quantized=True)
    names = [each.name for operand in layer.operands for each in operand.sources]
    if any("weight_hr" in name for name in names):
        return _in_vain("not-linear-type", _FAILS + "the int8 LSTM knows no projection (proj_size).",
                        "Project with an nn.Linear behind it.")  # fmt: skip
    if any(_is_unbatched(use.input, path) for use in layer.uses):
        return _in_vain("not-linear-type", _FAILS + "the int8 kernel takes inputs with a batch only.",
                        "Give it x.unsqueeze(1), and take .squeeze(1) of the result.")  # fmt: skip
    if len(layer.uses[0].node.args) > 3 and layer.uses[0].node.args[3] is False:
        return _left_float(_eager("not-linear-type", f"quantize_dynamic fails for the whole model: {kind} has no bias, "
                                  "and from_float asserts one.", "Give it a bias of zeros."))  # fmt: skip
    return EagerVerdict(quantized=True)


def _is_unbatched(node: fx.Node, path: str) -> bool:
    """nn.LSTM puts a batch of one around an input without."""
    return rank(node) == 2 or (node.target is torch.ops.aten.unsqueeze.default and layer_path(node)[0] == path)


def _nested(layer: Layer) -> EagerVerdict:
    region = str(layer.uses[0].node.target)
    quantized = layer.op == "aten.linear" and layer.sources[0].name.endswith(".weight")
    reason = _eager("higher-order-op", f"The layer lies inside {region}, which must trace what it calls, and cannot "
                    "trace int8 modules: the model fails once anything in it is replaced.",
                    "Write the branch or loop without it.", region=region)  # fmt: skip
    return EagerVerdict(quantized=quantized, reason=reason)


def _other_class(layer: Layer, path: str, kind: str) -> EagerVerdict:
    if kind in ATTENTION:
        return _left_float(_attention(layer))
    if kind.startswith("torch.jit."):
        return _left_float(_eager("script-child", f"{path} is a ScriptModule: its type is not nn.Linear's, and what is "
                                  "inside are no Python modules.", "Quantize first, script last."))  # fmt: skip
    if ".parametrizations." in "".join(source.name for source in layer.sources) or "parametri" in kind.lower():
        return _left_float(_eager("parametrized", "The weight is computed by a parametrization: from_float asserts the "
                                  "exact type, and quantize_dynamic fails for the whole model.",
                                  "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"))  # fmt: skip
    if layer.sources[0].kind is not InputKind.PARAMETER:
        return _left_float(_no_parameter(layer))
    return _parameter_of(layer, path, kind)


def _parameter_of(layer: Layer, path: str, kind: str) -> EagerVerdict:
    node, owner = layer.uses[0].node, layer.sources[0].name.rpartition(".")[0]
    if _is_computed(layer):
        return _left_float(_eager("computed-weight", f"The weight is computed from {_listed(layer)} in every forward: "
                                  "there is no module to swap.",
                                  "Compute it once, and put it into an nn.Linear."))  # fmt: skip
    calls = frames(node)
    own_forward = bool(calls) and calls[-1].file.endswith(LINEAR_SOURCE)
    if own_forward and owner != path:
        return _left_float(_eager("alias", f"{owner} is replaced where it is registered, but the model calls its float "
                                  "forward through another reference, such as a bound method.",
                                  "Call the module by its name."))  # fmt: skip
    if own_forward or (owner == path and kind.endswith("Linear") and layer.op == "aten.linear"):
        return _left_float(_eager("subclass", f"{kind} is not exactly torch.nn.Linear, and quantize_dynamic compares "
                                  "exact types.",
                                  "module.__class__ = torch.nn.Linear, when its forward is unchanged."))  # fmt: skip
    if owner == path and path and layer.sources[0].name.endswith("weight"):
        return _left_float(_eager("lookalike", f"{kind} does a linear's work, but its type is in no swap table.",
                                  "Rebuild it as an nn.Linear with a contiguous [out, in] weight."))  # fmt: skip
    if owner != path and layer.sources[0].name.endswith(".weight") and _class_at(node.graph, owner) not in TABLES:
        return _left_float(_eager("weight-attr-read", f"The model reads {owner}.weight instead of calling {owner}. If "
                                  "that is an nn.Linear, it is replaced, and its weight is then a method.",
                                  f"Call {owner}."))  # fmt: skip
    return _left_float(_eager("functional", f"The product is {layer.op} on a bare parameter of {kind or 'the model'}: "
                              "there is no module to swap.", "Make it an nn.Linear."))  # fmt: skip


def _is_computed(layer: Layer) -> bool:
    """Whether more than views lies between the parameters and the product."""
    if len({source.name for source in layer.sources}) > 1:
        return True
    operand = layer.uses[0].operands[0]
    while operand.op == "call_function":
        if operand.target not in VIEWS:
            return True
        operand = operand.all_input_nodes[0]
    return False


def _listed(layer: Layer) -> str:
    return " and ".join(dict.fromkeys(source.name for source in layer.sources))


def _class_at(graph: fx.Graph, path: str) -> str:
    """The class of the module at ``path``, where the graph calls it."""
    return next((kind for node in graph.nodes for at, kind in module_classes(node) if at == path), "")


def _attention(layer: Layer) -> Reason:
    remedy = "Write the attention with nn.Linear layers for q, k, v and out."
    if layer.name.endswith("out_proj"):
        return _eager("mha", "nn.MultiheadAttention's out_proj is a NonDynamicallyQuantizableLinear: its type is "
                      "in no swap table, because the attention reads its weight directly.", remedy)  # fmt: skip
    return _eager("mha", "nn.MultiheadAttention keeps its in_proj as a bare Parameter, not as a module: "
                  "there is nothing to swap.", remedy, parameter=layer.sources[0].name)  # fmt: skip


def _no_parameter(layer: Layer) -> Reason:
    if layer.name.startswith("lifted_tensor"):
        return _eager("unregistered", "The weight belongs to a module kept in a plain list, dict or closure: "
                      "named_children() cannot reach it.",
                      "Use nn.ModuleList, nn.ModuleDict or an attribute.")  # fmt: skip
    return _eager("plain-tensor", "The weight is a plain tensor or a buffer, not a module's parameter.",
                  "Make it an nn.Linear.", tensor=layer.sources[0].name)  # fmt: skip


def _not_linear(layer: Layer) -> Reason:
    codes = {"embedding": "embedding-qconfig", "batched": "param-3d", "einsum": "functional", "opaque": "opaque-op"}
    return _eager(codes.get(layer.kind, "not-linear-type"),
                  f"{layer.type or layer.op} is not among the types quantize_dynamic swaps by default.",
                  "None with quantize_dynamic's default arguments.")  # fmt: skip


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _views() -> Iterator[Any]:
    aten = torch.ops.aten
    yield from (aten.numpy_T.default, aten.mT.default)
    yield from (aten.t.default, aten.permute.default, aten.transpose.int, aten.detach.default, aten.alias.default)
    yield from (aten.view.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default)
    yield from (aten.clone.default, aten.to.dtype, aten._to_copy.default, aten.contiguous.default, aten.select.int)
    yield from (aten.slice.Tensor, aten.squeeze.dim, aten._unsafe_view.default, aten.to.dtype_layout)
    yield from (aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.chunk.default)


VIEWS = frozenset((*_views(), operator.getitem))
