"""The frozen value that goes through the pipeline: each stage returns it with what that stage decided or found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from fewbit.contract.report import CalibrationReport
from fewbit.runtime.program import Program
from workers.engine.calibration.activation_statistics import InputStatistics
from workers.engine.graph.layers import Layer
from workers.engine.quantization.plan import Planned
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.reference import FixedRange


@dataclass(frozen=True)
class Calibration:
    """What one pass over the calibration data tells. ``unreached``: the names of layers that no sample reached;
    ``inputs``: statistics of what layers read; ``report``: about the data itself."""

    ranges: Mapping[fx.Node, FixedRange] = field(default_factory=dict)
    unreached: tuple[str, ...] = ()
    inputs: Mapping[fx.Node, InputStatistics] = field(default_factory=dict)
    report: CalibrationReport | None = None


@dataclass(frozen=True)
class Conversion:
    """A float program on its way to int8. Later fields stay empty until their stage has run.

    ``planned``: one entry per layer, in order. ``alphas``: by name, for layers that were smoothed. ``quantized``: the
    layers with integer weights, in the plan's order.
    """

    program: Program
    layers: tuple[Layer, ...]
    planned: tuple[Planned, ...]
    alphas: Mapping[str, float] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    quantized: tuple[QuantizedLayer, ...] = ()

    @property
    def ranges(self) -> Mapping[fx.Node, FixedRange]:
        """The fixed ranges of values that static layers read, and of those that their chains pass on."""
        return self.calibration.ranges
