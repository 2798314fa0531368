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

from fewbit.runtime.program import Program
from workers.engine.data import Batch, Data
from workers.engine.errors import EngineError, first_line
from workers.engine.imitation import imitated
from workers.engine.layers import Layer, Use
from workers.engine.quantize import QuantizedLayer
from workers.engine.reference import FixedRange
from workers.engine.run import ProgramRun, primary_output
from workers.engine.weights import sqnr_db


@dataclass
class LayerObservation:
    """Of one layer: seconds for one batch (the fastest seen, over all its uses), multiply-accumulates for one sample,
    SQNR in dB of its int8 output on the float input (the worst of its uses)."""

    seconds: float = float("inf")
    macs: int = 0
    output_sqnr_db: float | None = None


@dataclass
class Observation:
    """``rows``: the number of output rows written; ``layers`` by name."""

    layers: dict[str, LayerObservation]
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
    advance: Callable[[float], None],
) -> Observation:
    """Run the float program over all of ``data``; its primary output goes to ``outputs`` (``.npy``, one row a sample).

    Raises ``EngineError('calibration-failed')`` naming the batch the model fails on.
    """
    observation = Observation({layer.name: LayerObservation() for layer in layers})
    by_name = {each.layer.name: each for each in quantized}
    written: np.memmap[Any, Any] | None = None
    for batch in data.batches():
        observation.spent = {}
        first = batch.start == 0
        around = {
            use.node: _watch(
                layer,
                use,
                _imitation(by_name.get(layer.name) if first else None, use, ranges),
                observation,
                len(batch.inputs[0]) if batch.inputs else 1,
            )
            for layer in layers
            for use in layer.uses
        }
        rows = output_rows(primary_output(_run(program, around, batch)), batch)
        if written is None:
            total = data.samples if len(rows) == batch.count else -(-data.samples // data.batch_size)
            written = np.lib.format.open_memmap(outputs, "w+", np.float32, (total, *rows.shape[1:]))
        written[observation.rows : observation.rows + len(rows)] = rows
        observation.rows += len(rows)
        observation.finite = observation.finite and bool(np.isfinite(rows).all())
        for name, seconds in observation.spent.items():
            observation.layers[name].seconds = min(observation.layers[name].seconds, seconds)
        advance((batch.start + batch.count) / data.samples)
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


def _imitation(
    quantized: QuantizedLayer | None, use: Use, ranges: Mapping[fx.Node, FixedRange]
) -> Callable[..., Tensor | None]:
    if quantized is None:
        return lambda _: None
    return lambda value: imitated(quantized, use, value, ranges)


def _watch(
    layer: Layer, use: Use, imitation: Callable[..., Tensor | None], observation: Observation, batch_size: int
) -> Callable[..., Any]:
    seen = observation.layers[layer.name]

    def around(_: fx.Node, compute: Callable[[], Any], value: Callable[[Any], Any]) -> Any:
        approximation = imitation(value)  # first: the call may overwrite its input
        started = time.perf_counter()
        result = compute()
        observation.spent[layer.name] = observation.spent.get(layer.name, 0.0) + time.perf_counter() - started
        first = result[0] if isinstance(result, list | tuple) else result
        if use is layer.uses[0]:
            seen.macs = _macs(layer, first) * len(layer.uses) // batch_size
        if approximation is not None:
            own = sqnr_db(first, approximation)
            seen.output_sqnr_db = own if seen.output_sqnr_db is None else min(own, seen.output_sqnr_db)
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
