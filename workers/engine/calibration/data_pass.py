"""Running the float model over data: one loop and one error for calibration and measurement alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from torch import fx

from fewbit.runtime.program import Program
from workers.engine.data import Batch, Data
from workers.engine.graph.run import Around, ProgramRun
from workers.errors import EngineError, first_line

Result = TypeVar("Result")


def run_over_data(
    data: Data, run: Callable[[Batch], Result], samples: str = "samples"
) -> Iterator[tuple[Batch, Result]]:
    """Each batch, and what ``run`` returns for it. ``samples``: what an error calls them.

    Raises ``EngineError('calibration-failed')`` naming the batch that fails.
    """
    for batch in data.batches():
        yield batch, run_batch(batch, run, samples)


def run_batch(batch: Batch, run: Callable[[Batch], Result], samples: str = "samples") -> Result:
    """``run(batch)``. Raises ``EngineError('calibration-failed')`` naming the samples if it fails."""
    try:
        return run(batch)
    except EngineError:
        raise
    except Exception as error:  # the user's model, on the user's data
        last = batch.start + batch.count - 1
        message = f"the float model fails on {samples} {batch.start} to {last}: {first_line(error)}"
        raise EngineError("calibration-failed", message) from error


def run_calibration(
    program: Program, around: Mapping[fx.Node, Around], data: Data, advance: Callable[[float], None]
) -> None:
    """One pass over the calibration data; ``around`` looks at the values it needs. Raises
    ``EngineError('calibration-failed')``."""
    program_run = ProgramRun(program, around)

    def run(batch: Batch) -> None:
        program_run.outputs(batch.inputs)

    for batch, _ in run_over_data(data, run, "calibration samples"):
        advance((batch.start + batch.count) / data.samples)
