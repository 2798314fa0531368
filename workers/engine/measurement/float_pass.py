"""The float pass: the model's outputs, the time of each layer, and each layer's own error in int8."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, fx

from fewbit.contract.report import TargetSaturation
from fewbit.contract.spec import ReportParts
from fewbit.runtime.program import Program
from workers.engine.calibration.activation_statistics import InputStatistics, input_statistics, subsample
from workers.engine.calibration.conversion import Conversion
from workers.engine.calibration.data_pass import run_batch, run_over_data
from workers.engine.calibration.unreached_branches import BranchCoverage
from workers.engine.data import Batch, Data
from workers.engine.graph.layers import Layer, Use
from workers.engine.graph.run import Around, ProgramRun, primary_output
from workers.engine.measurement.saturation import simulate_saturation
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.reference import FixedRange
from workers.engine.quantization.repair import with_finite_weights
from workers.engine.quantization.simulation import simulate_layer
from workers.engine.quantization.weights import sqnr_db


@dataclass
class LayerObservation:
    """One layer: seconds for one batch (the fastest, over all its uses), multiply-accumulates for one sample, SQNR in
    dB of its int8 output on the float input (the worst of its uses), a subsample of its float output for the first
    batch, and how its integer sums would saturate on other CPUs."""

    seconds: float = float("inf")
    macs: int = 0
    output_sqnr_db: float | None = None
    first_output: Tensor | None = None
    saturation: dict[str, TargetSaturation] | None = None


@dataclass
class Observation:
    """``layers``: by name. ``inputs``: statistics of what they read, where the report asks for them. ``branches``:
    those that the data took. ``rows``: output rows written. ``seconds``: of each layer in the current batch."""

    layers: dict[str, LayerObservation]
    inputs: dict[fx.Node, InputStatistics]
    branches: BranchCoverage
    rows: int = 0
    finite: bool = True
    seconds: dict[str, float] = field(default_factory=dict)

    def keep_fastest(self) -> None:
        """Close the current batch."""
        for name, seconds in self.seconds.items():
            self.layers[name].seconds = min(self.layers[name].seconds, seconds)
        self.seconds = {}


def observe(
    conversion: Conversion, data: Data, outputs: Path, parts: ReportParts, advance: Callable[[float], None]
) -> Observation:
    """Run the float program over all of ``data``; its primary output goes to ``outputs`` (``.npy``, one row a sample).
    Where constants are not finite, a second pass on finite ones measures the layers behind them.

    Raises ``EngineError('calibration-failed')`` naming the batch the model fails on.
    """
    program, layers = conversion.program, conversion.layers
    inputs = input_statistics(layers) if parts.activations else {}
    layer_observations = {layer.name: LayerObservation() for layer in layers}
    observation = Observation(layer_observations, inputs, BranchCoverage(program, layers))
    probe = _LayerProbe({entry.layer.name: entry for entry in conversion.quantized}, conversion.ranges, parts,
                        observation)  # fmt: skip
    finite = with_finite_weights(program)
    passes = _float_passes(conversion, data, observation, probe if finite is program else None)
    written: np.memmap[Any, Any] | None = None
    for batch, output in passes:
        observation.keep_fastest()
        rows = output_rows(output, batch)
        if written is None:
            total = data.samples if len(rows) == batch.count else -(-data.samples // data.batch_size)
            written = np.lib.format.open_memmap(outputs, "w+", np.float32, (total, *rows.shape[1:]))
        written[observation.rows : observation.rows + len(rows)] = rows
        observation.rows += len(rows)
        observation.finite = observation.finite and bool(np.isfinite(rows).all())
        advance((batch.start + batch.count) / data.samples)
    if finite is not program:
        for _ in _float_passes(replace(conversion, program=finite), data, observation, probe):
            pass
    return observation


def program_outputs(program: Program, batch: Batch) -> np.ndarray[Any, Any]:
    """The primary output of ``program`` for ``batch``, one row a sample."""
    output = run_batch(batch, lambda batch: primary_output(ProgramRun(program).outputs(batch.inputs)))
    return output_rows(output, batch)


def output_rows(output: Tensor, batch: Batch) -> np.ndarray[Any, Any]:
    """One row a sample; an output without the batch as its first axis is one row as a whole."""
    if output.dim() == 0 or output.shape[0] != batch.size:
        output = output.unsqueeze(0)
        return output.numpy()
    return output[: batch.count].numpy()


@dataclass
class _LayerProbe:
    """Measures around each layer call, beside its time: its input in every batch, its error in the first."""

    quantized: Mapping[str, QuantizedLayer]
    ranges: Mapping[fx.Node, FixedRange]
    parts: ReportParts
    observation: Observation

    def before(self, layer: Layer, use: Use, value: Callable[[Any], Any], first: bool) -> Tensor | None:
        """The quantized layer's own output, where it is asked for. Before the call: that may overwrite its input."""
        statistics = self.observation.inputs.get(use.input)
        if statistics is not None and use is layer.uses[0] and self._is_first_reader(layer, use.input):
            statistics.observe(value(use.input))
        quantized = self.quantized.get(layer.name)
        if quantized is None or not first:
            return None
        if self.parts.saturation and use is layer.uses[0] and use.input is not use.node:
            fixed = self.ranges.get(use.input)
            qparams = fixed.qparams if fixed else None
            saturation = simulate_saturation(quantized, use, value(use.input), qparams)
            self.observation.layers[layer.name].saturation = saturation
        return simulate_layer(quantized, use, value, self.ranges) if self.parts.errors else None

    def after(self, layer: Layer, use: Use, output: Any, approximation: Tensor | None, first: bool) -> None:
        layer_observation = self.observation.layers[layer.name]
        if not first or not isinstance(output, Tensor):
            return
        if use is layer.uses[0] and self.parts.errors and output.is_floating_point():
            layer_observation.first_output = subsample(output).clone()
        if approximation is not None:
            known, own = layer_observation.output_sqnr_db, sqnr_db(output, approximation)
            layer_observation.output_sqnr_db = own if known is None else min(own, known)

    def _is_first_reader(self, layer: Layer, node: fx.Node) -> bool:
        """Whether of all layers that read this value, this is the one that adds it to the statistics."""
        return self._readers.setdefault(node, layer.name) == layer.name

    _readers: dict[fx.Node, str] = field(default_factory=dict)


def _float_passes(
    conversion: Conversion, data: Data, observation: Observation, probe: _LayerProbe | None
) -> Iterator[tuple[Batch, Tensor]]:
    """The program's primary output batch by batch, each layer call timed, and looked at by ``probe``."""
    calls = [(layer, use) for layer in conversion.layers for use in layer.uses]

    def run(batch: Batch) -> Tensor:
        around = {use.node: _time_call(layer, use, observation, probe, batch) for layer, use in calls}
        return primary_output(ProgramRun(conversion.program, around).outputs(batch.inputs))

    return run_over_data(data, run)


def _time_call(layer: Layer, use: Use, observation: Observation, probe: _LayerProbe | None, batch: Batch) -> Around:
    batch_size, is_first = len(batch.inputs[0]) if batch.inputs else 1, batch.start == 0

    def around(_: fx.Node, compute: Callable[[], Any], value: Callable[[Any], Any]) -> Any:
        observation.branches.record(use.node, value)
        approximation = probe.before(layer, use, value, is_first) if probe else None
        started = time.perf_counter()
        result = compute()
        observation.seconds[layer.name] = observation.seconds.get(layer.name, 0.0) + time.perf_counter() - started
        output = result[0] if isinstance(result, list | tuple) else result
        if use is layer.uses[0]:
            observation.layers[layer.name].macs = _macs(layer, output) * len(layer.uses) // batch_size
        if probe:
            probe.after(layer, use, output, approximation, is_first)
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
