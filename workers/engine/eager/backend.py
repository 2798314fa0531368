"""``backend: eager``: exactly what ``torch.ao.quantization`` does to the user's module. Only this file imports it.

dynamic   ``quantize_dynamic(module)``; where ``weights.granularity`` is per_channel, with per_channel_dynamic_qconfig
static    FX graph mode, ``prepare_fx`` and ``convert_fx`` under the x86 default mapping, on the calibration data

A layer that the spec excludes gets no qconfig. Nothing else is decided here: the float program's table says which
layers there are, and the module that comes back shows, path by path, which of them were replaced.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from workers.engine.calibration.conversion import Conversion
from workers.engine.data import Data, read_calibration, read_evaluation
from workers.engine.draft import Draft
from workers.engine.eager.rows import ReplacedLayer, eager_findings, eager_rows, shared_module
from workers.engine.eager.script import Inputs, Positional, WeightOwners, layer_calls, to_torchscript
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
class SwappedModule:
    """``module``: as torch.ao left it; ``floats``: a float module whose children have the same paths, and compute what
    the replacements stand for."""

    module: nn.Module
    floats: nn.Module


def convert(task: Task, folder: Path, program: Program, stopwatch: Stopwatch) -> Draft:
    """From the upload, and ``program`` as its float form, to the artifact in ``out/`` and the draft of its report.

    Raises ``EngineError('quantization-failed')`` for a module that torch.ao cannot quantize.
    """
    inputs = signature(program)
    names = [signature.name for signature in inputs]
    with stopwatch.time("load"):
        module = open_module(folder / task.model_file, task.model.format)
        data = read_evaluation(task, folder, inputs)
    with stopwatch.time("plan"):
        layers, products = find_layers(program)
        conversion = Conversion(program, layers, plan(layers, task.spec, full_range=False))
    with stopwatch.time("observe") as advance:
        observation = observe(conversion, data, folder / "float.npy", task.spec.report, advance)
    first = next(data.batches())
    with stopwatch.time("quantize"), _torch_ao_errors():
        calibration = read_calibration(task, folder, inputs) if task.spec.method == "static" else None
        swapped = _swap_modules(module, names, task, conversion.planned, calibration)
        quantized = Positional(swapped.module, names)
        result = primary_output(pytree.tree_leaves(quantized(*first.inputs)))
        np.save(folder / "expected.npy", output_rows(result, first))
        replaced = _measure_errors(_find_replaced(swapped, layers), swapped, names, first.inputs)
    with stopwatch.time("package"), _torch_ao_errors():
        script = to_torchscript(quantized, first.inputs, inputs)
        calls = layer_calls(script, _weight_owners(module, layers, replaced))
        _save(script, folder)
    rows = eager_rows(conversion, replaced, observation, task.spec)
    forgotten = _find_forgotten(module, swapped, replaced)
    return Draft(
        inputs=inputs,
        rows=rows,
        products=product_rows(products),
        coverage=coverage(conversion, rows, observation),
        findings=(*eager_findings(program, rows, task.spec), *map(shared_module, forgotten)),
        finite=observation.finite,
        calls={"torchscript": calls},
    )


@contextmanager
def _torch_ao_errors() -> Iterator[None]:
    """Around all code that runs the module: if it fails, the job does. Turns off the fast path of stock transformers,
    which reads ``linear1.weight``: that is a method once linear1 was replaced."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations, and warnings about the user's model, which nobody sees here
            yield
    except (MemoryError, EngineError):
        raise
    except Exception as error:  # torch.ao raises many kinds, most of them about its internals
        raise EngineError(
            "quantization-failed",
            f"torch.ao.quantization cannot quantize this module: {type(error).__name__}: {first_line(error)} "
            "Post the job with backend: graph, which works on the exported program instead.",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


# --- What torch.ao does -----------------------------------------------------------------------------------------------


def _swap_modules(
    module: nn.Module, names: Sequence[str], task: Task, planned: Sequence[Planned], calibration: Data | None
) -> SwappedModule:
    """``calibration`` is given when ranges are to be fixed. ``module`` itself is not changed."""
    excluded = [entry.layer.name for entry in planned if entry.reason and entry.reason.code == "excluded-by-user"]
    if calibration is None:
        per_channel = task.spec.weights.granularity == "per_channel"
        return SwappedModule(_quantize_dynamic(module, per_channel, excluded), module)
    return SwappedModule(_quantize_static(module, names, excluded, calibration), fuse_fx(copy.deepcopy(module)))


def _quantize_dynamic(module: nn.Module, per_channel: bool, excluded: Sequence[str]) -> nn.Module:
    qconfig = per_channel_dynamic_qconfig if per_channel else default_dynamic_qconfig
    quantize: Callable[..., nn.Module] = quantize_dynamic
    return quantize(module, {**dict.fromkeys(DYNAMIC_TYPES, qconfig), **dict.fromkeys(excluded)})


def _quantize_static(module: nn.Module, names: Sequence[str], excluded: Sequence[str], data: Data) -> nn.Module:
    mapping = get_default_qconfig_mapping("x86")
    for name in excluded:
        mapping.set_module_name(name, None)
    prepared = prepare_fx(copy.deepcopy(module), mapping, next(data.batches()).inputs)
    for batch in data.batches():
        prepared(**dict(zip(names, batch.inputs, strict=True)))
    return convert_fx(prepared)


# --- What it did ------------------------------------------------------------------------------------------------------


def _find_replaced(swapped: SwappedModule, layers: Sequence[Layer]) -> dict[str, ReplacedLayer]:
    """By name, the layers that now have integer weights."""
    children = dict(swapped.module.named_modules(remove_duplicate=False))
    weights = {layer.name: _quantized_weight(children.get(layer.name), layer) for layer in layers}
    return {name: ReplacedLayer(_unpack(weight)) for name, weight in weights.items() if weight is not None}


def _quantized_weight(child: nn.Module | None, layer: Layer) -> Tensor | None:
    """The quantized weight of ``layer``; None where ``child``, at the layer's path, is float. A layer may stand for a
    parameter that no module of that path owns: attention's in_proj."""
    if layer.name == "" and hasattr(child, PACKED_ROOT):
        weight: Tensor = getattr(child, PACKED_ROOT).unpack()[0]
        return weight
    if isinstance(child, RNNBase | RNNCellBase):
        get_weight: Callable[[], dict[str, Tensor]] = child.get_weight
        return get_weight()[layer.sources[0].name.rpartition(".")[2]]
    read = getattr(child, "weight", None)  # a parameter of a float module, a method of a quantized one
    return read() if callable(read) else None


def _find_forgotten(
    module: nn.Module, swapped: SwappedModule, replaced: Mapping[str, ReplacedLayer]
) -> Iterator[tuple[str, str]]:
    """(layer, other path) where the layer's module has a second name, and is still the float one there:
    ``named_children`` of a parent gives each module once."""
    paths: dict[int, list[str]] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        paths.setdefault(id(child), []).append(path)
    now = dict(swapped.module.named_modules(remove_duplicate=False))
    for same in paths.values():
        layer = next((path for path in same if path in replaced), None)
        if layer is not None:
            yield from ((layer, path) for path in same if type(now.get(path)) in DYNAMIC_TYPES)


def _unpack(weight: Tensor) -> QuantizedWeight:
    shape = [1] * weight.dim()
    if weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return QuantizedWeight(weight.int_repr(), torch.full(shape, weight.q_scale()), "per_tensor")
    shape[weight.q_per_channel_axis()] = -1
    return QuantizedWeight(weight.int_repr(), weight.q_per_channel_scales().float().view(shape), "per_channel")


def _measure_errors(
    replaced: Mapping[str, ReplacedLayer], swapped: SwappedModule, names: Sequence[str], inputs: Inputs
) -> dict[str, ReplacedLayer]:
    """Add each layer's own SQNR: its replacement's output against its float output, on the same float input."""
    ranges = _input_ranges(replaced, swapped.module, names, inputs)
    measured: dict[str, float] = {}

    def compare_with_replacement(name: str) -> Any:
        replacement = swapped.module.get_submodule(name)

        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            quantized = _quantize_input(arguments, ranges.get(name))
            expected, actual = _first_tensor(output), _first_tensor(replacement(*quantized, **keywords))
            measured[name] = min(sqnr_db(expected, actual), measured.get(name, float("inf")))

        return hook

    hooks = [
        swapped.floats.get_submodule(name).register_forward_hook(compare_with_replacement(name), with_kwargs=True)
        for name in replaced
        if name
    ]
    Positional(swapped.floats, names)(*inputs)
    for hook in hooks:
        hook.remove()
    return {name: replace(layer, output_sqnr_db=measured.get(name)) for name, layer in replaced.items()}


def _input_ranges(
    replaced: Mapping[str, ReplacedLayer], module: nn.Module, names: Sequence[str], inputs: Inputs
) -> dict[str, tuple[float, int]]:
    """(scale, zero point) of the quantized input of each layer that takes one."""
    ranges: dict[str, tuple[float, int]] = {}

    def record_range(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and arguments[0].is_quantized:
                ranges[name] = (arguments[0].q_scale(), arguments[0].q_zero_point())

        return hook

    hooks = [module.get_submodule(name).register_forward_pre_hook(record_range(name)) for name in replaced if name]
    Positional(module, names)(*inputs)
    for hook in hooks:
        hook.remove()
    return ranges


def _quantize_input(arguments: tuple[Any, ...], qparams: tuple[float, int] | None) -> tuple[Any, ...]:
    if qparams is None:
        return arguments
    return (torch.quantize_per_tensor(arguments[0], *qparams, torch.quint8), *arguments[1:])


def _first_tensor(output: Any) -> Tensor:
    tensor: Tensor = pytree.tree_leaves(output)[0]
    return tensor.dequantize() if tensor.is_quantized else tensor


# --- The artifact -----------------------------------------------------------------------------------------------------


def _save(script: torch.jit.ScriptModule, folder: Path) -> None:
    path = folder / "out" / KINDS["torchscript"].file
    path.parent.mkdir()
    torch.jit.save(script, path)
    shrink(path)


def _weight_owners(module: nn.Module, layers: Sequence[Layer], replaced: Mapping[str, ReplacedLayer]) -> WeightOwners:
    """A tied parameter is listed under every name that it has in the user's model."""
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
    return WeightOwners(floats, packed | {name: name for name in replaced if name})
