"""The ONNX artifact: the reference with its arithmetic written as QuantizeLinear and DequantizeLinear.

ONNX Runtime finds those around a product and runs the integer kernel instead: MatMulIntegerToFloat, QLinearConv. Its
own dynamic quantization takes one range for the whole batch; here each row is divided by its largest magnitude, so that
the range is a constant, and the product is multiplied by it again:

    x -> Div -> QuantizeLinear(1 / levels) -> DequantizeLinear -> MatMul -> Mul -> Add
         ^ ReduceMax(Abs(x))                  DequantizeLinear(int8 weight) ^

Opset 21, the first with int4 and scales by groups. Importing the exporter takes seconds, so it is done when needed.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fewbit.runtime.program import Program, argument, dtype_of, mutates, rank, viewed
from fewbit.runtime.record import LayerRecord, PerToken, QuantizedValue, WeightRecord
from fewbit.runtime.script import Call
from fewbit.runtime.source import NotExpressible, user_outputs
from workers.engine.artifacts.onnx_operators import dequantize, high_nibbles, quantize_dequantize, translations
from workers.engine.artifacts.onnx_rewrites import rewrite_for_onnx
from workers.engine.graph.editor import GraphEditor, after
from workers.engine.quantization.activations import scaled_rows
from workers.engine.quantization.reference import Reference
from workers.errors import first_line

aten = torch.ops.aten
OPSET = 21
LARGEST_FILE = 2**31 - 2**20  # bytes: protobuf's limit
LARGEST_FOLD = 1024  # elements: above it constants are computed at load, so that no weight is stored in float
SMALLEST_GROUP = 16  # ONNX Runtime's kernels for weights in groups


def save_onnx(reference: Reference, path: Path) -> tuple[Call, ...]:
    """Write ``path``, one file. Inputs are named as the program's arguments. Its calls are not the profiler's: none.

    Raises ``NotExpressible`` naming the operator ONNX has no form for.
    """
    _require_form(reference.program)
    rewriter = _Rewriter(reference)
    program = rewriter.rewrite()
    model = _export(program.exported)
    for name, value in rewriter.nibbles.items():
        _as_int4(model, name, value)
    _save(model, path)
    try:
        _require_kernels(path)
    except NotExpressible:
        path.unlink()
        raise
    return ()


def load_onnx(path: Path) -> Callable[[Sequence[Tensor]], list[Any]]:
    """A session on the CPU with this process's number of threads: flat inputs to flat outputs."""
    session = _session(path)
    names = [taken.name for taken in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Any]:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(np.asarray(output)) for output in session.run(None, given)]

    return run


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class _Rows:
    """The rows of an input as integers of ``scale``, counted from ``low``; one and zero where there is None."""

    integers: fx.Node
    scale: fx.Node | None = None
    low: fx.Node | None = None


class _Rewriter(GraphEditor):
    """``fixed``: quantized values in float32, before they are cast back; ``rows``, ``operands`` and ``biases``: what
    several layers share; ``nibbles``: by the name of its graph input, a weight to be stored in four bits."""

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference.program, drop_unread=True)
        self.record = reference.record
        self.held_by = {constant.name: node.name for node, constant in reference.program.constants.items()}
        self.recorded = {node.name: node for node in reference.program.graph.nodes}
        self.fixed: dict[str, fx.Node] = {}
        self.biases: dict[tuple[str, str, str], list[fx.Node]] = {}
        self.rows: dict[tuple[str, bool, PerToken], _Rows] = {}
        self.operands: dict[tuple[str, bool], fx.Node] = {}
        self.nibbles: dict[str, Tensor] = {}

    def rewrite(self) -> Program:
        for value in self.record.values:
            self._fix(value)
        for layer in self.record.layers:
            if layer.kind == "linear":
                self._linear(layer)
            elif layer.kind == "convolution" and layer.quantized_input is not None:
                self._convolution(layer)
        self.drop_dead()
        for node in self.graph.find_nodes(op="call_function", target=aten.bitwise_right_shift.Tensor_Scalar):
            self._shift(node)
        rewrite_for_onnx(self)
        return self.finish()

    # --- Values ---

    def _fix(self, value: QuantizedValue) -> None:
        node, source = self.nodes[value.node], self.nodes[value.source]
        with self.graph.inserting_before(node):
            wide = self.cast(node, source, torch.float32)
            fixed = self.call(node, quantize_dequantize, wide, value.scale, value.zero_point)
            self.fixed[value.node] = fixed
            self.replace(node, self.cast(node, fixed, dtype_of(node)))

    def _normalized(self, layer: LayerRecord, scheme: PerToken) -> _Rows:
        key = (layer.input, layer.left, scheme)
        if key not in self.rows:
            x = self.nodes[layer.input]
            with self.graph.inserting_before(after(x)):
                wide = self._prepared(layer, x)
                rows, scale, low = self.insert(x, scaled_rows, wide, axes=(-1,), range=scheme.range)
                fixed = self.call(x, quantize_dequantize, rows, 1 / scheme.steps, scheme.zero_point)
            self.rows[key] = _Rows(fixed, scale, low)
        return self.rows[key]

    def _prepared(self, layer: LayerRecord, x: fx.Node) -> fx.Node:
        wide = self.cast(x, x, torch.float32)
        return self.call(x, aten.transpose.int, wide, -1, -2) if layer.left else wide

    # --- Weights ---

    def _operand(self, like: fx.Node, weight: WeightRecord, transposed: bool) -> fx.Node:
        """The weight in float32, from integers: as they are stored, or for ``transposed`` [in, out]."""
        key = (weight.values, transposed)
        if key not in self.operands:
            first = next(node for node in self.graph.nodes if node.op != "placeholder")
            values, scale = self._stored(weight)
            with self.graph.inserting_before(first):
                self.operands[key] = self._dequantized(like, weight, values, scale, transposed)
        return self.operands[key]

    def _stored(self, weight: WeightRecord) -> tuple[Tensor, Tensor]:
        values, scale = self.value(weight.values), self.value(weight.scale)
        assert values is not None
        assert scale is not None
        if weight.packed:
            values = torch.cat([values & 15, values >> 4], dim=-1).to(torch.int8) - 8
        return values, scale

    def _dequantized(
        self, like: fx.Node, weight: WeightRecord, values: Tensor, scale: Tensor, transposed: bool
    ) -> fx.Node:
        name = f"{weight.scale}_{'columns' if transposed else 'rows'}"
        grouped = weight.granularity == "per_group"
        if not grouped:
            scale = _by_channel(values, scale)
        steps = self.add_buffer(name, scale.t().contiguous() if grouped and transposed else scale)
        if weight.packed:
            shape = values.t().contiguous() if transposed else values
            held = self.add_buffer(f"{name}_values", shape)
            self.nibbles[held.name] = shape
        else:
            held = self.nodes[self.held_by[weight.values]]
            held = self.call(like, aten.t.default, held) if transposed else held
        axis = (0 if transposed else 1) if grouped else (1 if transposed else 0)
        zero = None if grouped else self.add_buffer(f"{name}_zero", torch.zeros(len(scale), dtype=torch.int8))
        return self.call(like, dequantize, held, steps, zero, axis, weight.group_size or 0)

    def _shift(self, node: fx.Node) -> None:
        """The reference's own shift of packed values: the exporter's translation makes int8 of uint8 (torch 2.13)."""
        packed = argument(node, "self")
        if dtype_of(packed) is torch.uint8 and argument(node, "other") == 4:
            with self.graph.inserting_before(node):
                self.replace(node, self.call(node, high_nibbles, packed))

    # --- Layers ---

    def _linear(self, layer: LayerRecord) -> None:
        """``y = alpha * x @ W.T + beta * bias``, written as the runtime's integer products are."""
        node, weight = self.nodes[layer.node], layer.weights[0]
        if not _has_kernel(layer, weight):
            return
        with self.graph.inserting_before(node):
            rows = self._multiplied(layer)
            result = self.call(node, aten.matmul.default, rows.integers, self._operand(node, weight, True))
            if rows.scale is not None:
                result = self.call(node, aten.mul.Tensor, result, rows.scale)
            if rows.low is not None:
                share = self.call(node, aten.mul.Tensor, rows.low, self._sums(weight))
                result = self.call(node, aten.add.Tensor, result, share)
            self.replace(node, self._finished(layer, node, result))

    def _sums(self, weight: WeightRecord) -> fx.Node:
        """What one unit more on every input adds to each output."""
        values, scale = self._stored(weight)
        sums = values.sum(1, dtype=torch.float32) * _by_channel(values, scale)
        return self.add_buffer(f"{weight.scale}_sums_{len(self.specs)}", sums)

    def _multiplied(self, layer: LayerRecord) -> _Rows:
        if layer.per_token is not None:
            return self._normalized(layer, layer.per_token)
        fixed = self.fixed.get(layer.quantized_input or "")
        return _Rows(self._prepared(layer, fixed or self.nodes[layer.input]))

    def _finished(self, layer: LayerRecord, node: fx.Node, result: fx.Node) -> fx.Node:
        if layer.left:
            result = self.call(node, aten.transpose.int, result, -1, -2)
        if layer.alpha != 1:
            result = self.call(node, aten.mul.Tensor, result, layer.alpha)
        if layer.bias is not None:
            result = self._sum(layer, node, result, self._bias(layer, node))
        return self.cast(node, result, dtype_of(node))

    def _sum(self, layer: LayerRecord, node: fx.Node, product: fx.Node, bias: fx.Node) -> fx.Node:
        """The runtime makes a Gemm of a matrix product plus a vector, but not for int4: there, minus the opposite."""
        if layer.compute == "int8":
            return self.call(node, aten.add.Tensor, product, bias, alpha=layer.beta)
        return self.call(node, aten.sub.Tensor, product, self.call(node, aten.neg.default, bias), alpha=layer.beta)

    def _bias(self, layer: LayerRecord, node: fx.Node) -> fx.Node:
        """Where the product is a Gemm at a fixed range: in int32, at the scale of its sums, as the runtime takes it."""
        bias = self.nodes[layer.bias or ""]
        held = self.program.constant(self.recorded[layer.bias or ""]) if rank(bias) == 1 else None
        plain = layer.alpha == 1 and layer.beta == 1 and not layer.left
        if held is None or layer.quantized_input is None or rank(node) != 2 or not plain:
            return self.cast(node, bias, torch.float32)
        step = next(value.scale for value in self.record.values if value.node == layer.quantized_input)
        scale = _by_channel(*self._stored(layer.weights[0])).to(torch.float64) * step
        values = (held.to(torch.float64) / scale).round()
        if bool((values.abs() >= 2**31).any()):
            return self.cast(node, bias, torch.float32)
        name = f"int32_bias_{len(self.biases)}"
        key = (layer.bias or "", layer.quantized_input, layer.weights[0].values)
        if key not in self.biases:
            tensors = values.to(torch.int32), scale.to(torch.float32), torch.zeros(len(scale), dtype=torch.int32)
            names = name, f"{name}_scale", f"{name}_zero"
            self.biases[key] = [self.add_buffer(*buffer) for buffer in zip(names, tensors, strict=True)]
        return self.call(node, dequantize, *self.biases[key], 0, 0)

    def _convolution(self, layer: LayerRecord) -> None:
        weight = layer.weights[0]
        if weight.dtype != "int8" or weight.granularity == "per_group":
            return
        old = self.nodes[weight.operand]
        result = self._operand(self.nodes[layer.node], weight, False)
        if old is not result:
            self.replace(old, result)


def _by_channel(values: Tensor, scale: Tensor) -> Tensor:
    return scale.flatten().expand(values.shape[0]).contiguous()


def _has_kernel(layer: LayerRecord, weight: WeightRecord) -> bool:
    """Integer products of whole channels, float products of int4 groups (MatMulNBits). Weights that are integers only
    in store keep the reference's arithmetic, which is computed once, when the file is loaded: behind a
    DequantizeLinear the runtime multiplies int8 weights with rounded activations, for 43 dB instead of 45."""
    if weight.granularity == "per_group":
        return layer.compute == "float" and weight.packed and (weight.group_size or 0) >= SMALLEST_GROUP
    return layer.compute == "int8" and not weight.packed


# --- The file ---


def _export(exported: Any) -> Any:
    """The program in ONNX's own representation (``onnx_ir.Model``)."""
    try:
        with _quietly():
            made = torch.onnx.export(
                exported, (), dynamo=True, optimize=False, opset_version=OPSET, custom_translation_table=translations(),
                verbose=False, external_data=False,
            )  # fmt: skip
            assert made is not None
            _optimize(made.model)
    except Exception as error:  # whatever the exporter meets in a user's program
        raise NotExpressible(f"ONNX has no form for this program: {_cause(error)}") from error
    return made.model


def _optimize(model: Any) -> None:
    """Fold what is small, shapes above all; larger constants are computed when the file is loaded."""
    from onnxscript.optimizer import optimize_ir

    optimize_ir(model, input_size_limit=LARGEST_FOLD, output_size_limit=LARGEST_FOLD, should_fold=_may_fold)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # among it the lines of source that every node comes from
        node.doc_string = None


def _may_fold(node: Any) -> bool | None:
    """None: as the optimizer thinks. A transposed weight would be stored twice where it is also a table, and one in
    integers would be stored in float."""
    import onnx_ir

    integers = (onnx_ir.DataType.INT8, onnx_ir.DataType.UINT8)
    given = (value for value in node.inputs if value is not None and value.is_initializer())
    weights = any(value.dtype in integers for value in given)
    return False if weights or node.op_type == "Transpose" else None


def _as_int4(model: Any, name: str, values: Tensor) -> None:
    """Two values a byte, in place of the int8 that torch can express."""
    import ml_dtypes
    import onnx_ir

    held = next((value for key, value in model.graph.initializers.items() if _same_name(key, name)), None)
    if held is None:
        return  # the optimizer keeps one of equal weights, which a decoder's copied layers have before training
    held.const_value = onnx_ir.tensor(values.numpy().astype(ml_dtypes.int4), name=held.name)
    held.dtype = onnx_ir.DataType.INT4


def _same_name(key: str, node: str) -> bool:
    return key == node or f"b_{key}".replace(".", "_") == node


def _save(model: Any, path: Path) -> None:
    import onnx_ir

    constants = (value.const_value for value in model.graph.initializers.values())
    size = sum(constant.nbytes for constant in constants if constant is not None)
    if size > LARGEST_FILE:
        raise NotExpressible(f"its {size} bytes of weights do not fit one ONNX file, which holds {LARGEST_FILE}")
    onnx_ir.save(model, path)


def _require_form(program: Program) -> None:
    """What the exporter would write as something else, or not at all. An ONNX graph gives tensors and keeps nothing
    from one call to the next; its LSTM has one size for what it gives and what it keeps."""
    lstms = program.graph.find_nodes(op="call_function", target=aten.lstm.input)
    projected = [lstm for lstm in lstms if len({state.meta["val"].shape[-1] for state in argument(lstm, "hx")}) > 1]
    if projected:
        raise NotExpressible(f"ONNX's LSTM has no projection, and {projected[0].name!r} projects its output")
    _require_no_writes(program)
    plain = [output for output in user_outputs(program) if not isinstance(output, fx.Node)]
    if plain:
        raise NotExpressible(f"an ONNX graph gives only tensors, and this program also returns {plain[0]!r}")


def _require_no_writes(program: Program) -> None:
    state = program.state
    changed = [hole for hole, _ in program.kept]
    changed += [
        root for node in program.graph.nodes if mutates(node) and (root := viewed(node.args[0])).op == "placeholder"
    ]
    for hole in changed:
        if hole in state:
            raise NotExpressible(f"an ONNX graph keeps no state, and this program writes to {state[hole][0]!r}")
        raise NotExpressible(f"an ONNX graph cannot write to its inputs, and this program writes to {hole.name!r}")


def _require_kernels(path: Path) -> None:
    """Not every operator has a kernel for every dtype; bfloat16 has few, and no array to come in."""
    try:
        session = _session(path)
    except Exception as error:  # the runtime's own, of many classes
        raise NotExpressible(f"ONNX Runtime cannot run this program: {first_line(error)}") from error
    if any(value.type == "tensor(bfloat16)" for value in (*session.get_inputs(), *session.get_outputs())):
        raise NotExpressible("ONNX Runtime takes and gives no bfloat16")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporter prints its progress and logs at every turn; a job's output is for the job."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def _cause(error: BaseException) -> str:
    """What the innermost error says: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error) if isinstance(error, Exception) else type(error).__name__
