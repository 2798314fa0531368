"""The float pass: what the model gives, how long each layer takes, how far each layer by itself is off in int8."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, fx

from fewbit.contract.report import TargetSaturation
from fewbit.contract.spec import ReportParts
from fewbit.runtime.program import Program
from workers.engine.calibration.activation_statistics import InputWatch, share_of, watches_of
from workers.engine.calibration.unreached_branches import Branches
from workers.engine.data import Batch, Data
from workers.engine.graph.layers import Layer, Use
from workers.engine.graph.run import ProgramRun, primary_output
from workers.engine.measurement.saturation import saturation_of
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.reference import FixedRange
from workers.engine.quantization.repair import cleaned
from workers.engine.quantization.simulation import imitated
from workers.engine.quantization.weights import sqnr_db
from workers.errors import EngineError, first_line


@dataclass
class LayerObservation:
    """Of one layer: seconds for one batch (the fastest seen, over all its uses), multiply-accumulates for one sample,
    SQNR in dB of its int8 output on the float input (the worst of its uses), a share of its float output for the first
    batch, and what its integer sums would be elsewhere."""

    seconds: float = float("inf")
    macs: int = 0
    output_sqnr_db: float | None = None
    first_output: Tensor | None = None
    saturation: dict[str, TargetSaturation] | None = None


@dataclass
class Observation:
    """``rows``: the number of output rows written; ``layers`` by name; ``inputs``: what they read, where it was asked
    for; ``branches``: those that the data took."""

    layers: dict[str, LayerObservation]
    inputs: dict[fx.Node, InputWatch]
    branches: Branches
    rows: int = 0
    finite: bool = True
    spent: dict[str, float] = field(default_factory=dict)


def observe(
    program: Program,
    layers: Sequence[Layer],
    quantized: Sequence[QuantizedLayer],
    ranges: Mapping[fx.Node, FixedRange],
    data: Data,
    outputs: Path,
    parts: ReportParts,
    advance: Callable[[float], None],
) -> Observation:
    """Run the float program over all of ``data``; its primary output goes to ``outputs`` (``.npy``, one row a sample).
    Where constants are not finite, what lies behind them is looked at in a second pass, on finite ones.

    Raises ``EngineError('calibration-failed')`` naming the batch the model fails on.
    """
    inputs = watches_of(layers) if parts.activations else {}
    seen = {layer.name: LayerObservation() for layer in layers}
    observation = Observation(seen, inputs, Branches(program, layers))
    look = _Look({each.layer.name: each for each in quantized}, ranges, parts, observation)
    sound = cleaned(program)
    written: np.memmap[Any, Any] | None = None
    for batch in data.batches():
        observation.spent = {}
        watched = _timed(layers, observation, batch, look if sound is program else None)
        rows = output_rows(primary_output(_run(program, watched, batch)), batch)
        if written is None:
            total = data.samples if len(rows) == batch.count else -(-data.samples // data.batch_size)
            written = np.lib.format.open_memmap(outputs, "w+", np.float32, (total, *rows.shape[1:]))
        written[observation.rows : observation.rows + len(rows)] = rows
        observation.rows += len(rows)
        observation.finite = observation.finite and bool(np.isfinite(rows).all())
        for name, seconds in observation.spent.items():
            observation.layers[name].seconds = min(observation.layers[name].seconds, seconds)
        advance((batch.start + batch.count) / data.samples)
    if sound is not program:
        for batch in data.batches():
            _run(sound, _timed(layers, observation, batch, look), batch)
    return observation


def outputs_of(program: Program, batch: Batch) -> np.ndarray[Any, Any]:
    """What ``program`` gives for ``batch``, one row a sample."""
    return output_rows(primary_output(_run(program, {}, batch)), batch)


def output_rows(output: Tensor, batch: Batch) -> np.ndarray[Any, Any]:
    """One row a sample; an output without the batch as its first axis is one row as a whole."""
    size = len(batch.inputs[0]) if batch.inputs else 1
    if output.dim() == 0 or output.shape[0] != size:
        output = output.unsqueeze(0)
        return output.numpy()
    return output[: batch.count].numpy()


def _run(program: Program, around: dict[fx.Node, Any], batch: Batch) -> list[Any]:
    try:
        return ProgramRun(program, around).outputs(batch.inputs)
    except EngineError:
        raise
    except Exception as error:  # the user's model, on the user's data
        last = batch.start + batch.count - 1
        message = f"the float model fails on samples {batch.start} to {last}: {first_line(error)}"
        raise EngineError("calibration-failed", message) from error


Around = Callable[..., Any]


@dataclass
class _Look:
    """What is looked at around each layer call, beside its time: its inputs in every batch, its error in the first."""

    quantized: Mapping[str, QuantizedLayer]
    ranges: Mapping[fx.Node, FixedRange]
    parts: ReportParts
    observation: Observation

    def before(self, layer: Layer, use: Use, value: Callable[[Any], Any], first: bool) -> Tensor | None:
        """The quantized layer's own output, where it is asked for: before the call, which may overwrite its input."""
        watch = self.observation.inputs.get(use.input)
        if watch is not None and use is layer.uses[0] and self._is_first_reader(layer, use.input):
            watch.observe(value(use.input))
        quantized = self.quantized.get(layer.name)
        if quantized is None or not first:
            return None
        if self.parts.saturation and use is layer.uses[0] and use.input is not use.node:
            fixed = self.ranges.get(use.input)
            seen = self.observation.layers[layer.name]
            seen.saturation = saturation_of(quantized, use, value(use.input), fixed.qparams if fixed else None)
        return imitated(quantized, use, value, self.ranges) if self.parts.errors else None

    def after(self, layer: Layer, use: Use, output: Any, approximation: Tensor | None, first: bool) -> None:
        seen = self.observation.layers[layer.name]
        if not first or not isinstance(output, Tensor):
            return
        if use is layer.uses[0] and self.parts.errors and output.is_floating_point():
            seen.first_output = share_of(output).clone()
        if approximation is not None:
            own = sqnr_db(output, approximation)
            seen.output_sqnr_db = own if seen.output_sqnr_db is None else min(own, seen.output_sqnr_db)

    def _is_first_reader(self, layer: Layer, node: fx.Node) -> bool:
        """Whether of all layers that read this value, this is the one that watches it."""
        return self._readers.setdefault(node, layer.name) == layer.name

    _readers: dict[fx.Node, str] = field(default_factory=dict)


def _timed(
    layers: Sequence[Layer], observation: Observation, batch: Batch, look: _Look | None
) -> dict[fx.Node, Around]:
    size = len(batch.inputs[0]) if batch.inputs else 1
    return {
        use.node: _watch(layer, use, observation, look, size, batch.start == 0)
        for layer in layers
        for use in layer.uses
    }


def _watch(
    layer: Layer, use: Use, observation: Observation, look: _Look | None, batch_size: int, first_batch: bool
) -> Around:
    seen = observation.layers[layer.name]

    def around(_: fx.Node, compute: Callable[[], Any], value: Callable[[Any], Any]) -> Any:
        observation.branches.note(use.node, value)
        approximation = look.before(layer, use, value, first_batch) if look else None
        started = time.perf_counter()
        result = compute()
        observation.spent[layer.name] = observation.spent.get(layer.name, 0.0) + time.perf_counter() - started
        first = result[0] if isinstance(result, list | tuple) else result
        if use is layer.uses[0]:
            seen.macs = _macs(layer, first) * len(layer.uses) // batch_size
        if look:
            look.after(layer, use, first, approximation, first_batch)
        return result

    return around


def _macs(layer: Layer, result: Any) -> int:
    """Multiply-accumulates of one call. Embeddings look up; a recurrent layer reads all its weights at each step."""
    if layer.kind == "embedding" or not isinstance(result, Tensor):
        return 0
    if layer.kind == "convolution":
        return result.numel() * math.prod(layer.shape[axis] for axis in layer.operands[0].reduce)
    if layer.kind == "linear":
        return result.numel() * layer.shape[1]
    if layer.kind in ("batched", "einsum"):
        return result.numel() * math.prod(layer.shape[axis] for axis in layer.operands[0].reduce)
    if layer.kind == "recurrent":
        return result.shape[:-1].numel() * layer.parameters
    return result.shape[0] * layer.weight.numel() if result.dim() else 0
