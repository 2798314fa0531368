"""What layers and operators are called: as the user's model calls them."""

from __future__ import annotations

from torch import fx
from torch.export.graph_signature import InputKind

from fewbit.runtime.program import Constant
from workers.engine.graph.program import WRITTEN_AS
from workers.engine.graph.torch_internals import base_name, is_operator

_SUFFIXES = (".weight", "_weight", ".weight_orig", ".weight_mask", ".weight_v", ".weight_g")


def layer_name(sources: list[Constant], path: str, kind: str) -> str:
    """The layer's fully-qualified name in the user's model: the weight's own, without its suffix.

    ``enc.self_attn.in_proj_weight`` is the layer ``enc.self_attn.in_proj``; a bare Parameter keeps its whole name; a
    weight that another module owns (tied, aliased) takes the name of the module that called it.
    """
    primary = max(sources, key=lambda source: source.value.numel())
    name = primary.name
    if path and not name.startswith(f"{path}."):
        registered = primary.kind is InputKind.PARAMETER
        return path if kind.startswith("torch.nn.") or not registered else _without_suffix(name, kind)
    if ".parametrizations." in name:
        return name.split(".parametrizations.", 1)[0]
    return _without_suffix(name, kind)


def _without_suffix(name: str, kind: str) -> str:
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return "" if name == "weight" and kind.startswith("torch.nn.") else name


def op_name(node: fx.Node) -> str:
    """``aten.linear``: the operator of the user's own graph."""
    target = node.target
    if WRITTEN_AS in node.meta:
        return str(node.meta[WRITTEN_AS])
    return f"{target.namespace}.{base_name(target)}" if is_operator(target) else str(target)
