"""What the graph says about other routes: where they would leave a layer of this model float, or change the model.

All of it is information: none of it touches what this service made. One finding a code; ``evidence.layers`` lists all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.contract.report import Finding
from fewbit.runtime.program import Program, rank
from fewbit.runtime.regions import REGION
from workers.engine.explanation.eager_verdict import LINEAR
from workers.engine.graph.layers import Layer, Product
from workers.engine.graph.program import layer_path

aten = torch.ops.aten
MOST_NAMED = 50  # layers listed in one finding
GEMMS = frozenset((aten.linear.default, aten.addmm.default, aten.mm.default, aten.bmm.default, aten.matmul.default))
QUIET = frozenset((aten.t.default, aten.view.default, aten.reshape.default, aten.expand.default, aten.permute.default,
                   aten.unsqueeze.default, aten.squeeze.dim, aten._to_copy.default, aten.clone.default,
                   aten.to.dtype, aten.detach.default, aten.alias.default, aten.mul.Tensor,
                   aten.add.Tensor))  # fmt: skip
RELUS = frozenset((aten.relu.default, aten.relu_.default))
ADDED = frozenset((aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.rsub.Scalar))


@dataclass(frozen=True)
class Model:
    """What every rule here looks at: the program as uploaded, and its table."""

    program: Program
    layers: tuple[Layer, ...]
    products: tuple[Product, ...]

    @property
    def linears(self) -> list[Layer]:
        return [each for each in self.layers if each.kind == "linear"]


@dataclass(frozen=True)
class Remark:
    """One code: ``names`` gives the layers it is true of; ``message`` is about those, ``{n}`` of them."""

    code: str
    names: Callable[[Model], Sequence[str]]
    message: str
    remedy: str | None = None


def structure_findings(program: Program, layers: Sequence[Layer], products: Sequence[Product]) -> Iterator[Finding]:
    """One finding for each code that is true of at least one layer."""
    model = Model(program, tuple(layers), tuple(products))
    for remark in REMARKS:
        names = list(dict.fromkeys(remark.names(model)))
        if names:
            yield Finding(
                severity="info",
                code=remark.code,
                layer=names[0],
                message=remark.message.format(n=f"{len(names)} layer" + ("s" if len(names) > 1 else "")),
                evidence={"layers": names[:MOST_NAMED], "count": len(names)},
                remedy=remark.remedy,
            )


# --- Which layers -----------------------------------------------------------------------------------------------------


def _in_region(kind: str) -> Callable[[Model], list[str]]:
    def names(model: Model) -> list[str]:
        regions = {layer.name: _regions(layer) for layer in model.layers}
        return [
            name
            for name, found in regions.items()
            if any(("autocast" in each) == (kind == "autocast") for each in found)
        ]

    return names


def _regions(layer: Layer) -> list[str]:
    if layer.kind == "nested":
        return [str(layer.uses[0].node.target)]
    return [str(use.node.meta[REGION]) for use in layer.uses if REGION in use.node.meta]


def _deep(model: Model) -> list[str]:
    return [layer.name for layer in model.linears if any(rank(use.input) > 2 for use in layer.uses)]


def _deep_and_dynamic(model: Model) -> list[str]:
    return [
        layer.name
        for layer in model.linears
        if any(rank(use.input) > 2 and _is_dynamic(use.input) for use in layer.uses)
    ]


def _is_dynamic(node: fx.Node) -> bool:
    return any(not isinstance(size, int) for size in node.meta["val"].shape)


def _decomposed(model: Model) -> list[str]:
    written = {layer.name: layer.uses[0].node for layer in model.linears if layer.op != "aten.linear"}
    return [name for name, node in written.items() if layer_path(node)[1] == LINEAR]


def _post_op(model: Model) -> list[str]:
    return [
        layer.name
        for layer in model.linears
        for use in layer.uses
        if any(each.target in ADDED and _has_scalar(each) for each in use.node.users)
    ]


def _has_scalar(node: fx.Node) -> bool:
    return any(isinstance(each, int | float) for each in node.args[:2])


def _dead(model: Model) -> list[str]:
    """Layers that lead to no output: a call without readers, or whose readers have none."""
    read = _read(model.program)
    named = [layer.name for layer in model.layers if not any(use.node in read for use in layer.uses)]
    return [*named, *_unused(model)]


def _read(program: Program) -> set[fx.Node]:
    read: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        mutable = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        if node.op == "output" or node in read or mutable:
            read.update((node, *node.all_input_nodes))
    return read


def _unused(model: Model) -> list[str]:
    """Matrices of the model that no call reads: of a branch that the example did not take."""
    held = model.program.exported.state_dict
    constants = model.program.constants.items()
    read = {name for node, constant in constants if node.users for name in (constant.name, *constant.names)}
    unread = [name for name, value in held.items() if _is_matrix(value) and name not in read]
    return [name.removesuffix(".weight") for name in unread if name.endswith("weight")]


def _is_matrix(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 2 and value.is_floating_point()


def _strided(model: Model) -> list[str]:
    return [
        layer.name
        for layer in model.layers
        if any(not _in_order(source.value) for operand in layer.operands for source in operand.sources)
    ]


def _in_order(value: Tensor) -> bool:
    return value.layout is not torch.strided or value.is_contiguous()


def _products(model: Model) -> list[str]:
    return [product.name for product in model.products]


def _patched(model: Model) -> list[str]:
    """Modules nn.Linear that record more than their product, however it is written."""
    names = {layer_path(use.node): layer.name for layer in model.linears for use in layer.uses}
    calls = [node for node in model.program.graph.nodes if node.op == "call_function" and node.target not in GEMMS]
    return [names[layer_path(node)] for node in calls if layer_path(node) in names and _is_extra(model.program, node)]


def _is_extra(program: Program, node: fx.Node) -> bool:
    if layer_path(node)[1] != LINEAR or program.constant(node) is not None or not _is_floating(node):
        return False
    return node.target not in QUIET or (node.target in ARITHMETIC and not _is_decomposition(program, node))


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_decomposition(program: Program, node: fx.Node) -> bool:
    """The bias, added behind a product: what decompositions make of a linear of three dimensions."""
    return node.target is aten.add.Tensor and any(program.constant(each) is not None for each in node.all_input_nodes)


def _called_again_around_relu(model: Model) -> list[str]:
    return [
        layer.name
        for layer in model.linears
        if len(layer.uses) > 1
        and all(layer_path(use.node)[1] == LINEAR for use in layer.uses)
        and any(each.target in RELUS for use in layer.uses for each in use.node.users)
    ]


def _shared(model: Model) -> list[str]:
    """One module called under two parents."""
    parents: dict[Any, dict[str, str]] = {}
    for layer in model.layers:
        source = layer.sources[0]
        for path in {layer_path(use.node)[0] for use in layer.uses} & set(source.modules):
            parents.setdefault(source.modules, {})[path.rpartition(".")[0]] = layer.name
    return [name for found in parents.values() if len(found) > 1 for name in found.values()]


ARITHMETIC = frozenset((aten.mul.Tensor, aten.add.Tensor))

REMARKS = (
    Remark(
        "higher-order-op",
        _in_region("higher_order"),
        "{n} stood in a no_grad block or a control-flow operator: PT2E's X86InductorQuantizer skips what is inside. "
        "Here they are layers as any other.",
        "For that route, export under torch.no_grad() instead of writing it into forward.",
    ),
    Remark(
        "autocast",
        _in_region("autocast"),
        "{n} stood in an autocast block: PT2E's X86InductorQuantizer skips what is inside. Here they are layers as any "
        "other.",
        "For that route, take autocast out of forward.",
    ),
    Remark(
        "decomposed",
        _decomposed,
        "{n} came as addmm, mm or bmm: the program was decomposed before it was saved, and prepare_pt2e fails on "
        "such a graph.",
        "For that route, quantize before run_decompositions().",
    ),
    Remark(
        "not-lowered",
        _deep,
        "{n} read inputs of three dimensions or more: lower_pt2e_quantized_to_x86 leaves those in float.",
        "For that route, torch.compile with TORCHINDUCTOR_FREEZING=1.",
    ),
    Remark(
        "dynamic-shape",
        _deep_and_dynamic,
        "{n} read inputs of three dimensions with a free size: lower_pt2e_quantized_to_x86 lowers free sizes in two "
        "dimensions only.",
    ),
    Remark(
        "post-op",
        _post_op,
        "A Python number is added right behind {n}: prepare_pt2e with X86InductorQuantizer fails for the whole model.",
        "For that route, add a tensor, or fold the number into the bias.",
    ),
    Remark(
        "unreached",
        _dead,
        "{n} lead to no output of this program: the example took another branch, or nobody reads the result.",
        "Export with an example for every branch, or drop what is not needed.",
    ),
    Remark(
        "strides",
        _strided,
        "The weights of {n} are not contiguous: PT2E's lowering reads them as if they were, and computes garbage. Here "
        "they were put in order first.",
        "For that route, weight.contiguous() before export.",
    ),
    Remark(
        "act-act",
        _products,
        "{n} multiply two activations, as attention scores do: there is no weight to quantize, and they are counted "
        "nowhere.",
    ),
    Remark(
        "hooks",
        _patched,
        "{n} compute more than an nn.Linear does, from a hook or a replaced forward. FX and quantize_dynamic lose part "
        "of it without a word, and prepare_pt2e fails. Here it is part of the graph.",
        "For those routes, remove the hook, or register it on the quantized module.",
    ),
    Remark(
        "fx-fusion-bug",
        _called_again_around_relu,
        "{n} are called more than once, and a relu stands behind one of the calls: FX fuses it into all of them.",
        "For that route, duplicate the module, or use torch.relu.",
    ),
    Remark(
        "shared",
        _shared,
        "{n} are one module under several parents: quantize_dynamic makes a copy for each, and torchao's quantize_ "
        "fails. Here the weight is stored once.",
        "For those routes, quantize one and share it again.",
    ),
)
