"""The program as TorchScript: source text for each node, compiled once, its int8 weights packed for fbgemm.

Writing the source from the graph, instead of tracing or scripting a module, needs no example inputs, keeps dynamic
shapes dynamic (sizes stay expressions), and holds nothing the graph does not use: no dead float copy of any weight.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.jit._recursive import wrap_cpp_module
from torch.utils import _pytree as pytree

from workers.engine.archive import shrink
from workers.engine.errors import EngineError
from workers.engine.int8 import KERNEL, TINY
from workers.engine.layers import Use
from workers.engine.program import Program, rank
from workers.engine.quantize import QuantizedLayer

aten = torch.ops.aten

BINARY = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.floordiv: "//", operator.truediv: "/",
    operator.mod: "%", operator.pow: "**", operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=",
    operator.gt: ">", operator.ge: ">=", operator.and_: "and", operator.or_: "or",
}  # fmt: skip
CALLS: dict[Any, str] = {
    math.floor: "math.floor", math.ceil: "math.ceil", math.trunc: "int", operator.neg: "-",
    torch.sym_max: "max", torch.sym_min: "min", torch.sym_float: "float", torch.sym_int: "int", torch.sym_not: "not ",
}  # fmt: skip
SIZES = {aten.sym_size.int: "size", aten.sym_stride.int: "stride"}
CHECKS = frozenset((
    aten._assert_scalar.default, aten._assert_async.msg, aten._assert_tensor_metadata.default,
    aten.sym_constrain_range.default, aten.sym_constrain_range_for_size.default,
))  # fmt: skip
EMPTY_LISTS = {"int[]": "List[int]", "SymInt[]": "List[int]", "Tensor[]": "List[Tensor]", "float[]": "List[float]"}


def save_torchscript(program: Program, quantized: Iterable[QuantizedLayer], path: Path) -> None:
    """Write ``path``; it loads with ``torch.jit.load`` alone.

    Raises ``EngineError('quantization-failed')`` naming the node TorchScript cannot express.
    """
    writer = _Writer(program, {use.node: (use, each) for each in quantized for use in each.layer.uses})
    module = writer.compile()
    torch.jit.save(module, path)
    shrink(path)


_PLAIN = re.compile(r"(?!self$|torch$|math$|v_|rows\d|scale\d)[a-z][A-Za-z0-9_]*")  # nor one of the writer's own names


class _Writer:
    """Turns the graph into the body of ``forward``, registering on ``module`` each constant that body reads."""

    def __init__(self, program: Program, int8: dict[fx.Node, tuple[Use, QuantizedLayer]]) -> None:
        self.program = program
        self.int8 = int8
        self.module: Any = torch._C.ScriptModule("__torch__.fewbit.Int8Model", torch._C.CompilationUnit(), False)  # type: ignore[call-arg]
        self.lines: list[str] = []
        self.attributes: dict[Any, str] = {}
        self.rows: dict[tuple[fx.Node, int, bool], tuple[str, str]] = {}

    def compile(self) -> torch.jit.ScriptModule:
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self._call(node)
        self.lines.append(f"return {self._outputs()}")
        arguments = "".join(f", {_name(node)}: Tensor" for node in self.program.inputs)
        source = f"def forward(self{arguments}):\n" + "\n".join(f"    {line}" for line in self.lines) + "\n"
        concrete = torch._C.ConcreteModuleType.from_jit_type(self.module._type())
        try:
            self.module._define(concrete, source, torch._jit_internal.createResolutionCallbackFromFrame(0))
        except RuntimeError as error:
            raise EngineError("quantization-failed", f"TorchScript cannot express this program: {error}") from error
        compiled: torch.jit.ScriptModule = wrap_cpp_module(self.module)  # type: ignore[no-untyped-call]
        return compiled

    def _call(self, node: fx.Node) -> None:
        if node.target in CHECKS or (not node.users and not _mutates(node)):
            return
        if self.program.constant(node) is not None and all(user in self.int8 for user in node.users):
            return  # a weight computed from constants, already in the packed ones
        if node in self.int8:
            self._int8_linear(node, *self.int8[node])
        else:
            self.lines.append(f"{_name(node)} = {self._expression(node)}")

    # --- The int8 layers ---

    def _int8_linear(self, node: fx.Node, use: Use, quantized: QuantizedLayer) -> None:
        rows, scale = self._normalized(use, quantized)
        packed = self._attribute(quantized.layer.name, lambda: quantized.packed, "packed")
        activation = quantized.activation
        kernel = (f"torch.ops.{KERNEL.replace('::', '.')}({rows}, "
                  f"{activation.scale!r}, {activation.zero_point}, self.{packed})")  # fmt: skip
        if rank(use.input) == 1:
            kernel, scale = f"{kernel}.squeeze(0)", f"{scale}.squeeze(0)"
        self.lines.append(f"{_name(node)} = {self._scaled(kernel, scale, use, node)}")

    def _normalized(self, use: Use, quantized: QuantizedLayer) -> tuple[str, str]:
        """The rows divided by their largest magnitude; layers that share an input (q, k, v) share this too."""
        key = (use.input, quantized.activation.levels, use.left)
        if key not in self.rows:
            x, rows, scale = _name(use.input), f"rows{len(self.rows)}", f"scale{len(self.rows)}"
            if _dtype(use.input) is not torch.float32:
                x = f"{x}.to(torch.float32)"
            if use.left:
                x = f"{x}.transpose(-1, -2)"
            if rank(use.input) == 1:
                x = f"{x}.unsqueeze(0)"
            self.lines.append(f"{rows} = {x}")
            self.lines.append(f"{scale} = torch.clamp_min(torch.amax(torch.abs({rows}), [-1], True), {TINY!r})")
            self.lines.append(f"{rows} = torch.div({rows}, {scale})")
            self.rows[key] = (rows, scale)
        return self.rows[key]

    def _scaled(self, kernel: str, scale: str, use: Use, node: fx.Node) -> str:
        """scale * kernel (+ bias), in one pass where the bias is a plain vector."""
        plain = use.alpha == 1 and use.beta == 1 and not use.left and _dtype(use.input) is torch.float32
        if use.bias is not None and plain and _dtype(use.bias) is torch.float32:
            return f"torch.addcmul({self._value(use.bias)}, {kernel}, {scale})"
        product = f"torch.mul({kernel}, {scale})"
        if use.left:
            product = f"{product}.transpose(-1, -2)"
        if use.alpha != 1:
            product = f"torch.mul({product}, {use.alpha!r})"
        if use.bias is not None:
            product = f"torch.add({product}, {self._value(use.bias)}, alpha={use.beta!r})"
        dtype = _dtype(node)
        return product if dtype is torch.float32 else f"({product}).to({dtype})"

    # --- Everything else ---

    def _expression(self, node: fx.Node) -> str:
        target, arguments = node.target, node.args
        if target is operator.getitem:
            return f"{self._value(arguments[0])}[{arguments[1]}]"
        if target in BINARY:
            return f"({self._value(arguments[0])} {BINARY[target]} {self._value(arguments[1])})"
        if target in CALLS:
            return f"{CALLS[target]}({', '.join(self._value(each) for each in arguments)})"
        if target in SIZES:
            return f"{self._value(arguments[0])}.{SIZES[target]}({self._value(arguments[1])})"
        if target is aten.dropout.default and not arguments[2]:
            return self._value(arguments[0])
        if target in (aten.item.default, aten._local_scalar_dense.default):
            return f"{_number_type(node)}({self._value(arguments[0])})"
        if isinstance(target, torch._ops.OpOverload):
            return self._operator(node, target)
        raise EngineError(
            "quantization-failed",
            f"TorchScript has no form for {target} (node {node.name!r}); ask for `artifacts: ['pt2']` instead.",
        )

    def _operator(self, node: fx.Node, target: torch._ops.OpOverload) -> str:
        given = dict(zip((each.name for each in target._schema.arguments), node.args, strict=False)) | dict(node.kwargs)
        written = []
        for argument in target._schema.arguments:
            if argument.name in given:
                value = self._value(given[argument.name], str(argument.type))
                written.append(f"{argument.name}={value}" if argument.kwarg_only else value)
        return f"torch.ops.{target.namespace}.{target._opname}({', '.join(written)})"

    def _value(self, value: Any, type_: str = "") -> str:
        if isinstance(value, fx.Node):
            return self._node(value)
        if isinstance(value, list | tuple):
            return self._list(value, type_)
        if isinstance(value, torch.device):
            return f"torch.device({str(value)!r})"
        if isinstance(value, float) and not math.isfinite(value):
            return f"float({str(value)!r})"
        return str(value) if isinstance(value, torch.dtype | torch.layout | torch.memory_format) else repr(value)

    def _node(self, node: fx.Node) -> str:
        if node in self.program.constants:
            constant = self.program.constants[node]
            return f"self.{self._attribute(node, lambda: constant.value, constant.name)}"
        return _name(node)

    def _list(self, values: Iterable[Any], type_: str) -> str:
        items = f"[{', '.join(self._value(each) for each in values)}]"
        if "Optional[Tensor]" in type_ or any(each is None for each in values):
            return f"torch.jit.annotate(List[Optional[Tensor]], {items})"
        if items == "[]":
            return f"torch.jit.annotate({EMPTY_LISTS.get(type_, 'List[int]')}, [])"
        return items

    def _attribute(self, key: Any, value: Callable[[], Any], label: str) -> str:
        if key not in self.attributes:
            name = f"c{len(self.attributes)}_" + re.sub(r"[^A-Za-z0-9]", "_", label)
            held = value()
            kind = torch._C.TensorType.get() if isinstance(held, Tensor) else torch._C._jit_try_infer_type(held).type()
            self.module._register_attribute(name, kind, held)
            self.attributes[key] = name
        return self.attributes[key]

    def _outputs(self) -> str:
        results = next(node for node in self.program.graph.nodes if node.op == "output").args[0]
        user_outputs = self.program.exported.graph_signature.user_outputs
        kept = results[len(results) - len(user_outputs) :]
        spec = self.program.exported.call_spec.out_spec
        return self._structure(pytree.tree_unflatten([self._value(each) for each in kept], spec))

    def _structure(self, value: Any) -> str:
        """Nested tuples, lists and dicts of expressions, as one expression."""
        if isinstance(value, str):
            return value
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key!r}: {self._structure(each)}" for key, each in value.items()) + "}"
        items = ", ".join(self._structure(each) for each in value)
        return f"[{items}]" if isinstance(value, list) else f"({items},)"


def _name(node: fx.Node) -> str:
    """Names come from the upload and go into source text: whatever is no plain identifier is written in hex."""
    if node.op == "placeholder" and _PLAIN.fullmatch(node.name) and not keyword.iskeyword(node.name):
        return node.name
    return "v_" + re.sub(r"[^A-Za-z0-9_]", lambda each: f"x{ord(each[0]):x}", node.name)


def _dtype(node: fx.Node) -> torch.dtype:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else torch.float32


def _number_type(node: fx.Node) -> str:
    value = node.meta.get("val")
    return "float" if isinstance(value, float | torch.SymFloat) else "int"


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
