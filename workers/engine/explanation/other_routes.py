"""What the graph tells about other routes: where they would leave a layer of this model float, or change the model.

All of it is information, and does not affect the artifacts of this service. There is one finding per code;
``evidence.layers`` lists all its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.contract.report import Finding
from fewbit.runtime.program import Program, mutates, rank
from fewbit.runtime.regions import REGION
from workers.engine.explanation.quantize_dynamic import LINEAR
from workers.engine.graph.layers import Layer, Product
from workers.engine.graph.ops import GEMMS, RELUS, SCALAR_ADDS, SCALE_AND_SHIFT, TRIVIAL_STEPS
from workers.engine.graph.program import layer_path

aten = torch.ops.aten
MOST_NAMED = 50  # layers listed in one finding


@dataclass(frozen=True)
class Model:
    """What every rule looks at: the program as uploaded, and its tables."""

    program: Program
    layers: tuple[Layer, ...]
    products: tuple[Product, ...]

    @property
    def linears(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.kind == "linear"]


@dataclass(frozen=True)
class Remark:
    """One code: ``names`` gives the layers it is true of. ``one`` and ``many`` are the message for one layer, and for
    ``{n}`` layers; ``message`` follows either."""

    code: str
    names: Callable[[Model], Sequence[str]]
    one: str
    many: str
    message: str = ""
    remedy: str | None = None

    def about(self, count: int) -> str:
        return f"{self.one if count == 1 else self.many.format(n=count)}{self.message}"


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
                message=remark.about(len(names)),
                evidence={"layers": names[:MOST_NAMED], "count": len(names)},
                remedy=remark.remedy,
            )


# --- Which layers -----------------------------------------------------------------------------------------------------


def _inside(kind: str) -> Callable[[Model], list[str]]:
    def names(model: Model) -> list[str]:
        regions = {layer.name: _regions(layer) for layer in model.layers}
        return [
            name
            for name, operators in regions.items()
            if any(("autocast" in operator) == (kind == "autocast") for operator in operators)
        ]

    return names


def _regions(layer: Layer) -> list[str]:
    if layer.kind == "nested":
        return [str(layer.uses[0].node.target)]
    return [str(use.node.meta[REGION]) for use in layer.uses if REGION in use.node.meta]


def _with_deep_inputs(model: Model) -> list[str]:
    return [layer.name for layer in model.linears if any(rank(use.input) > 2 for use in layer.uses)]


def _with_deep_dynamic_inputs(model: Model) -> list[str]:
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


def _before_added_scalar(model: Model) -> list[str]:
    return [
        layer.name
        for layer in model.linears
        for use in layer.uses
        if any(user.target in SCALAR_ADDS and _has_scalar(user) for user in use.node.users)
    ]


def _has_scalar(node: fx.Node) -> bool:
    return any(isinstance(argument, int | float) for argument in node.args[:2])


def _without_path_to_output(model: Model) -> list[str]:
    """Layers without a path to an output: no call of theirs is read, or only by nodes that are not read."""
    read = _nodes_on_path_to_output(model.program)
    named = [layer.name for layer in model.layers if not any(use.node in read for use in layer.uses)]
    return [*named, *_unread_matrices(model)]


def _nodes_on_path_to_output(program: Program) -> set[fx.Node]:
    read: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        mutable = mutates(node)
        if node.op == "output" or node in read or mutable:
            read.update((node, *node.all_input_nodes))
    return read


def _unread_matrices(model: Model) -> list[str]:
    """Matrices of the model that no call reads: they belong to a branch that the example did not take."""
    held = model.program.exported.state_dict
    constants = model.program.constants.items()
    read = {name for node, constant in constants if node.users for name in (constant.name, *constant.names)}
    unread = [name for name, value in held.items() if _is_matrix(value) and name not in read]
    return [name.removesuffix(".weight") for name in unread if name.endswith("weight")]


def _is_matrix(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 2 and value.is_floating_point()


def _with_strided_weights(model: Model) -> list[str]:
    return [
        layer.name
        for layer in model.layers
        if any(not _is_contiguous(source.value) for operand in layer.operands for source in operand.sources)
    ]


def _is_contiguous(value: Tensor) -> bool:
    return value.layout is not torch.strided or value.is_contiguous()


def _product_names(model: Model) -> list[str]:
    return [product.name for product in model.products]


def _with_extra_operations(model: Model) -> list[str]:
    """nn.Linear modules whose calls record more than the product, however that is written."""
    names = {layer_path(use.node): layer.name for layer in model.linears for use in layer.uses}
    calls = [node for node in model.program.graph.nodes if node.op == "call_function" and node.target not in GEMMS]
    return [
        names[layer_path(node)]
        for node in calls
        if layer_path(node) in names and _is_extra_operation(model.program, node)
    ]


def _is_extra_operation(program: Program, node: fx.Node) -> bool:
    if layer_path(node)[1] != LINEAR or program.constant(node) is not None or not _is_floating(node):
        return False
    return node.target not in TRIVIAL_STEPS or (node.target in SCALE_AND_SHIFT and not _is_decomposition(program, node))


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_decomposition(program: Program, node: fx.Node) -> bool:
    """Whether this adds the bias after a product: decompositions turn a linear of three dimensions into that."""
    if node.target is not aten.add.Tensor:
        return False
    return any(program.constant(argument) is not None for argument in node.all_input_nodes)


def _called_again_before_relu(model: Model) -> list[str]:
    return [
        layer.name
        for layer in model.linears
        if len(layer.uses) > 1
        and all(layer_path(use.node)[1] == LINEAR for use in layer.uses)
        and any(user.target in RELUS for use in layer.uses for user in use.node.users)
    ]


def _shared_by_parents(model: Model) -> list[str]:
    """One module called under two parents."""
    parents: dict[Any, dict[str, str]] = {}
    for layer in model.layers:
        source = layer.sources[0]
        for path in {layer_path(use.node)[0] for use in layer.uses} & set(source.modules):
            parents.setdefault(source.modules, {})[path.rpartition(".")[0]] = layer.name
    return [name for names in parents.values() if len(names) > 1 for name in names.values()]


REMARKS = (
    Remark(
        "higher-order-op",
        _inside("higher_order"),
        "1 layer is in a no_grad block or a control-flow operator",
        "{n} layers are in a no_grad block or a control-flow operator",
        ": PT2E's X86InductorQuantizer skips what is inside. Here it is quantized like any other layer.",
        "For that route, export under torch.no_grad() instead of writing it into forward.",
    ),
    Remark(
        "autocast",
        _inside("autocast"),
        "1 layer is in an autocast block",
        "{n} layers are in an autocast block",
        ": PT2E's X86InductorQuantizer skips what is inside. Here it is quantized like any other layer.",
        "For that route, take autocast out of forward.",
    ),
    Remark(
        "decomposed",
        _decomposed,
        "1 linear layer is an addmm, mm or bmm in the graph",
        "{n} linear layers are addmm, mm or bmm in the graph",
        ": the program was decomposed before it was saved, and prepare_pt2e fails on such a graph.",
        "For that route, quantize before run_decompositions().",
    ),
    Remark(
        "not-lowered",
        _with_deep_inputs,
        "1 layer reads an input of three dimensions or more",
        "{n} layers read inputs of three dimensions or more",
        ": lower_pt2e_quantized_to_x86 leaves those in float.",
        "For that route, torch.compile with TORCHINDUCTOR_FREEZING=1.",
    ),
    Remark(
        "dynamic-shape",
        _with_deep_dynamic_inputs,
        "1 layer reads an input of three dimensions with a free size",
        "{n} layers read inputs of three dimensions with a free size",
        ": lower_pt2e_quantized_to_x86 lowers free sizes only in two dimensions.",
    ),
    Remark(
        "post-op",
        _before_added_scalar,
        "1 layer has a Python number added to its output",
        "{n} layers have a Python number added to their output",
        ": prepare_pt2e with X86InductorQuantizer fails for the whole model.",
        "For that route, add a tensor, or fold the number into the bias.",
    ),
    Remark(
        "unreached",
        _without_path_to_output,
        "1 layer has no path to an output",
        "{n} layers have no path to an output",
        " of this program: the example took another branch, or nothing reads the result.",
        "Export with an example for every branch, or drop what is not needed.",
    ),
    Remark(
        "strides",
        _with_strided_weights,
        "1 layer has a weight that is not contiguous",
        "{n} layers have weights that are not contiguous",
        ": PT2E's lowering ignores the strides and computes garbage. Here weights are made contiguous first.",
        "For that route, weight.contiguous() before export.",
    ),
    Remark(
        "act-act",
        _product_names,
        "1 product multiplies two activations, as attention scores do",
        "{n} products multiply two activations, as attention scores do",
        ": there is no weight to quantize, and such products do not count as layers.",
    ),
    Remark(
        "hooks",
        _with_extra_operations,
        "1 nn.Linear computes more than a product",
        "{n} nn.Linear layers compute more than a product",
        ", from a hook or a replaced forward. FX and quantize_dynamic silently lose part of it; prepare_pt2e fails. "
        "Here it is part of the graph.",
        "For those routes, remove the hook, or register it on the quantized module.",
    ),
    Remark(
        "fx-fusion-bug",
        _called_again_before_relu,
        "1 layer is called more than once, and a relu follows one of the calls",
        "{n} layers are called more than once, and a relu follows one of the calls",
        ": FX fuses it into all of them.",
        "For that route, duplicate the module, or use torch.relu.",
    ),
    Remark(
        "shared",
        _shared_by_parents,
        "1 layer is a module with several parents",
        "{n} layers are modules with several parents",
        ": quantize_dynamic copies it for each parent, and torchao's quantize_ fails. Here the weight is stored once.",
        "For those routes, quantize one and share it again.",
    ),
)
