"""The float pass: what the model gives, how long each layer takes, how far each layer by itself is off in int8."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, fx

from workers.engine.data import Batch, Data
from workers.engine.errors import EngineError, first_line
from workers.engine.layers import Layer
from workers.engine.program import Program
from workers.engine.quantize import QuantizedLayer
from workers.engine.run import ProgramRun, int8_use, primary_output
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
            use.node: _watch(layer, use_index, by_name.get(layer.name) if first else None, observation, data.batch_size)
            for layer in layers
            for use_index, use in enumerate(layer.uses)
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


def int8_outputs(program: Program, quantized: Sequence[QuantizedLayer], batch: Batch) -> np.ndarray[Any, Any]:
    """What the artifacts must give for ``batch``: the same graph with every quantized layer on its int8 kernel."""
    around = {
        use.node: lambda node, _compute, value, use=use, each=each: int8_use(use, each, value, node.meta["val"].dtype)
        for each in quantized
        for use in each.layer.uses
    }
    return output_rows(primary_output(_run(program, around, batch)), batch)


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


def _watch(
    layer: Layer, use_index: int, quantized: QuantizedLayer | None, observation: Observation, batch_size: int
) -> Callable[..., Any]:
    seen = observation.layers[layer.name]

    def around(_: fx.Node, compute: Callable[[], Any], value: Callable[[Any], Any]) -> Any:
        started = time.perf_counter()
        result = compute()
        observation.spent[layer.name] = observation.spent.get(layer.name, 0.0) + time.perf_counter() - started
        if use_index == 0:
            first = result[0] if isinstance(result, tuple) else result
            seen.macs = _macs(layer, first) * len(layer.uses) // batch_size
        if quantized is not None:
            approximation = int8_use(layer.uses[use_index], quantized, value, result.dtype)
            own = sqnr_db(result, approximation)
            seen.output_sqnr_db = own if seen.output_sqnr_db is None else min(own, seen.output_sqnr_db)
        return result

    return around


def _macs(layer: Layer, result: Tensor) -> int:
    """Multiply-accumulates of one call. Embeddings look up; a recurrent layer reads all its weights at each step."""
    if layer.kind == "embedding":
        return 0
    if layer.kind == "convolution":
        return result.numel() * layer.weight[0].numel()
    if layer.kind == "linear":
        return result.numel() * layer.shape[1]
    if layer.kind == "recurrent":
        return result.shape[:-1].numel() * layer.parameters
    return result.shape[0] * layer.weight.numel() if result.dim() else 0
