"""``backend: eager``: exactly what ``torch.ao.quantization`` does to the user's module. This file alone names it.

dynamic   ``quantize_dynamic(module)``; where ``weights.granularity`` is per_channel, with per_channel_dynamic_qconfig
static    FX graph mode, ``prepare_fx`` and ``convert_fx`` under the x86 default mapping, on the calibration data

A layer that the spec excludes gets no qconfig. Nothing else is decided here: the table of the float program says what
layers there are, and the module that comes back, looked at path by path, which of them were replaced.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic.modules.rnn import RNNBase, RNNCellBase
from torch.ao.quantization import (
    default_dynamic_qconfig,
    get_default_qconfig_mapping,
    per_channel_dynamic_qconfig,
    quantize_dynamic,
)
from torch.ao.quantization.quantize_fx import convert_fx, fuse_fx, prepare_fx
from torch.utils import _pytree as pytree

from fewbit.runtime.program import Program
from workers.engine.artifacts.compression import shrink
from workers.engine.artifacts.kinds import KINDS
from workers.engine.data import Data, read_calibration, read_evaluation
from workers.engine.draft import Draft
from workers.engine.eager.rows import Replaced, eager_findings, eager_rows, still_float
from workers.engine.eager.script import Inputs, Owners, Positional, calls_of, scripted
from workers.engine.formats import open_module
from workers.engine.graph.layers import Layer, find_layers
from workers.engine.graph.program import signature
from workers.engine.graph.run import primary_output
from workers.engine.measurement.float_pass import observe, output_rows
from workers.engine.quantization.plan import Planned, plan
from workers.engine.quantization.weights import QuantizedWeight, sqnr_db
from workers.engine.reporting.layer_rows import coverage, product_rows
from workers.engine.stopwatch import Stopwatch
from workers.engine.task import Task
from workers.errors import EngineError, first_line

DYNAMIC_TYPES = (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.RNNCell, nn.GRUCell)  # quantize_dynamic's own default
PACKED_ROOT = "_packed_weight_0"  # where FX keeps the weight of a model that is a single layer itself


@dataclass(frozen=True)
class Swapped:
    """``module``: as torch.ao left it; ``floats``: a float module whose children have the same paths, and compute what
    their replacements stand for."""

    module: nn.Module
    floats: nn.Module


def convert(task: Task, folder: Path, program: Program, watch: Stopwatch) -> Draft:
    """From the upload, and ``program`` as what it is in float, to the artifact in ``out/`` and the draft of its report.

    Raises ``EngineError('quantization-failed')`` for a module that torch.ao cannot quantize.
    """
    inputs = signature(program)
    names = [each.name for each in inputs]
    with watch("load"):
        module = open_module(folder / task.model_file, task.model.format)
        data = read_evaluation(task, folder, inputs)
    with watch("plan"):
        layers, products = find_layers(program)
        planned = plan(layers, task.spec, full_range=False)
    with watch("observe") as advance:
        seen = observe(program, layers, (), {}, data, folder / "float.npy", task.spec.report, advance)
    first = next(data.batches())
    with watch("quantize"), _torch_ao():
        calibration = read_calibration(task, folder, inputs) if task.spec.method == "static" else None
        swapped = _swapped(module, names, task, planned, calibration)
        quantized = Positional(swapped.module, names)
        result = primary_output(pytree.tree_leaves(quantized(*first.inputs)))
        np.save(folder / "expected.npy", output_rows(result, first))
        replaced = _with_errors(_replaced(swapped, layers), swapped, names, first.inputs)
    with watch("package"), _torch_ao():
        script = scripted(quantized, first.inputs, inputs)
        calls = calls_of(script, _owners(module, layers, replaced))
        _save(script, folder)
    rows = eager_rows(planned, replaced, seen, task.spec)
    findings = (*eager_findings(program, rows, task.spec), *still_float(_forgotten(module, swapped, replaced)))
    return Draft(
        inputs=inputs,
        rows=rows,
        products=product_rows(products),
        coverage=coverage(program, planned, rows, seen),
        findings=findings,
        finite=seen.finite,
        calls={"torchscript": calls},
    )


@contextmanager
def _torch_ao() -> Iterator[None]:
    """Around all that runs the module: its failure is the job's. The fast path of stock transformers reads
    ``linear1.weight``, which is a method once linear1 was replaced."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of deprecations, and about the user's model, which nobody sees here
            yield
    except (MemoryError, EngineError):
        raise
    except Exception as error:  # torch.ao raises many kinds, most of them about its own insides
        raise EngineError(
            "quantization-failed",
            f"torch.ao.quantization cannot quantize this module: {type(error).__name__}: {first_line(error)} "
            "Post the job with backend: graph, which works on the exported program instead.",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


# --- What torch.ao does -----------------------------------------------------------------------------------------------


def _swapped(
    module: nn.Module, names: Sequence[str], task: Task, planned: Sequence[Planned], calibration: Data | None
) -> Swapped:
    """``calibration`` is there when ranges are to be fixed. ``module`` itself is not changed."""
    excluded = [each.layer.name for each in planned if each.reason and each.reason.code == "excluded-by-user"]
    if calibration is None:
        return Swapped(_dynamic(module, task.spec.weights.granularity == "per_channel", excluded), module)
    return Swapped(_static(module, names, excluded, calibration), fuse_fx(copy.deepcopy(module)))


def _dynamic(module: nn.Module, per_channel: bool, excluded: Sequence[str]) -> nn.Module:
    qconfig = per_channel_dynamic_qconfig if per_channel else default_dynamic_qconfig
    found: nn.Module = quantize_dynamic(  # type: ignore[no-untyped-call]
        module, {**dict.fromkeys(DYNAMIC_TYPES, qconfig), **dict.fromkeys(excluded)}
    )
    return found


def _static(module: nn.Module, names: Sequence[str], excluded: Sequence[str], data: Data) -> nn.Module:
    mapping = get_default_qconfig_mapping("x86")
    for name in excluded:
        mapping.set_module_name(name, None)
    prepared = prepare_fx(copy.deepcopy(module), mapping, next(data.batches()).inputs)
    for batch in data.batches():
        prepared(**dict(zip(names, batch.inputs, strict=True)))
    return convert_fx(prepared)


# --- What it did ------------------------------------------------------------------------------------------------------


def _replaced(swapped: Swapped, layers: Sequence[Layer]) -> dict[str, Replaced]:
    """By name, each layer that is an integer one now."""
    children = dict(swapped.module.named_modules(remove_duplicate=False))
    packed = {layer.name: _packed(children.get(layer.name), layer) for layer in layers}
    return {name: Replaced(_integers(weight)) for name, weight in packed.items() if weight is not None}


def _packed(child: nn.Module | None, layer: Layer) -> Tensor | None:
    """The quantized weight of ``layer``; None where ``child``, at the layer's path, is float. A layer may stand for a
    parameter that no module of that path owns: attention's in_proj."""
    if layer.name == "" and hasattr(child, PACKED_ROOT):
        weight: Tensor = getattr(child, PACKED_ROOT).unpack()[0]
        return weight
    if isinstance(child, RNNBase | RNNCellBase):
        return child.get_weight()[layer.sources[0].name.rpartition(".")[2]]  # type: ignore[no-any-return,no-untyped-call]
    read = getattr(child, "weight", None)  # of a float module a parameter, of a quantized one a method
    return read() if callable(read) else None


def _forgotten(module: nn.Module, swapped: Swapped, replaced: Mapping[str, Replaced]) -> Iterator[tuple[str, str]]:
    """(layer, other path) where the layer's module is called by a second name, and still is the float one there:
    ``named_children`` of one parent gives each module once."""
    paths: dict[int, list[str]] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        paths.setdefault(id(child), []).append(path)
    now = dict(swapped.module.named_modules(remove_duplicate=False))
    for same in paths.values():
        layer = next((path for path in same if path in replaced), None)
        if layer is not None:
            yield from ((layer, path) for path in same if type(now.get(path)) in DYNAMIC_TYPES)


def _integers(weight: Tensor) -> QuantizedWeight:
    shape = [1] * weight.dim()
    if weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return QuantizedWeight(weight.int_repr(), torch.full(shape, weight.q_scale()), "per_tensor")
    shape[weight.q_per_channel_axis()] = -1
    return QuantizedWeight(weight.int_repr(), weight.q_per_channel_scales().float().view(shape), "per_channel")


def _with_errors(
    replaced: Mapping[str, Replaced], swapped: Swapped, names: Sequence[str], inputs: Inputs
) -> dict[str, Replaced]:
    """Each layer's own SQNR: its replacement's output against its float output, on the same float input."""
    ranges = _input_ranges(replaced, swapped.module, names, inputs)
    measured: dict[str, float] = {}

    def watch(name: str) -> Any:
        stands_in = swapped.module.get_submodule(name)

        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            given = _as_read(arguments, ranges.get(name))
            wanted, got = _first(output), _first(stands_in(*given, **keywords))
            measured[name] = min(sqnr_db(wanted, got), measured.get(name, float("inf")))

        return hook

    hooks = [
        swapped.floats.get_submodule(name).register_forward_hook(watch(name), with_kwargs=True)
        for name in replaced
        if name
    ]
    Positional(swapped.floats, names)(*inputs)
    for each in hooks:
        each.remove()
    return {name: replace(each, output_sqnr_db=measured.get(name)) for name, each in replaced.items()}


def _input_ranges(
    replaced: Mapping[str, Replaced], module: nn.Module, names: Sequence[str], inputs: Inputs
) -> dict[str, tuple[float, int]]:
    """(scale, zero point) of the quantized input of each layer that takes one."""
    ranges: dict[str, tuple[float, int]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and arguments[0].is_quantized:
                ranges[name] = (arguments[0].q_scale(), arguments[0].q_zero_point())

        return hook

    hooks = [module.get_submodule(name).register_forward_pre_hook(watch(name)) for name in replaced if name]
    Positional(module, names)(*inputs)
    for each in hooks:
        each.remove()
    return ranges


def _as_read(arguments: tuple[Any, ...], qparams: tuple[float, int] | None) -> tuple[Any, ...]:
    if qparams is None:
        return arguments
    return (torch.quantize_per_tensor(arguments[0], *qparams, torch.quint8), *arguments[1:])


def _first(output: Any) -> Tensor:
    tensor: Tensor = pytree.tree_leaves(output)[0]
    return tensor.dequantize() if tensor.is_quantized else tensor


# --- The artifact -----------------------------------------------------------------------------------------------------


def _save(script: torch.jit.ScriptModule, folder: Path) -> None:
    path = folder / "out" / KINDS["torchscript"].file
    path.parent.mkdir()
    torch.jit.save(script, path)
    shrink(path)


def _owners(module: nn.Module, layers: Sequence[Layer], replaced: Mapping[str, Replaced]) -> Owners:
    """Under every name that a tied parameter has in the user's model."""
    paths: dict[int, list[str]] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        paths.setdefault(id(parameter), []).append(path)
    aliases = {path: tied for tied in paths.values() for path in tied}
    floats: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        for source in () if layer.name in replaced else layer.sources:
            for path in aliases.get(source.name, [source.name]):
                floats[path] = (*floats.get(path, ()), layer.name)
    packed = {PACKED_ROOT: ""} if "" in replaced else {}
    return Owners(floats, packed | {name: name for name in replaced if name})
