"""The story of a job, in two processes.

``convert`` opens the upload: load, find the layers, plan, quantize, run the float model, write the artifacts.
``verify`` starts fresh and never sees the upload before every artifact has been loaded and run in it: it measures
what will be delivered, says which kernels ran, times int8 against float, and writes the report.

A folder goes in (``task.json``, the model, the data), and the same folder comes out (``report.json``, ``out/``).
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from fewbit.contract.spec import JobSpec
from fewbit.runtime.program import Program
from workers.engine.artifacts.write import package
from workers.engine.calibration.bias import corrected
from workers.engine.calibration.calibrate import ranges_of
from workers.engine.calibration.smooth import smoothed, with_alphas
from workers.engine.data import read_calibration, read_evaluation
from workers.engine.draft import Draft
from workers.engine.eager import backend
from workers.engine.explanation.other_routes import structure_findings
from workers.engine.formats import open_program
from workers.engine.graph.canonicalize import canonical
from workers.engine.graph.layers import Layer, find_layers
from workers.engine.graph.program import signature
from workers.engine.measurement.float_pass import observe
from workers.engine.measurement.machine import peak_memory_bytes
from workers.engine.measurement.verification import Runs, measure_artifacts, measure_latency_of
from workers.engine.quantization.plan import full_range, plan, weights_for
from workers.engine.quantization.quantize import quantize
from workers.engine.quantization.reference import Reference, reference_of
from workers.engine.quantization.repair import non_finite, repaired
from workers.engine.reporting.assemble import report_of
from workers.engine.reporting.defects import Case, defects
from workers.engine.reporting.diagnose import diagnose
from workers.engine.reporting.findings import conversion_findings
from workers.engine.reporting.layer_rows import coverage, product_rows, report_rows
from workers.engine.stopwatch import Progress, Stopwatch
from workers.engine.task import FLOAT_PROGRAM, Task

__all__ = ["Progress", "convert", "verify"]

WORTH_COLLECTING = 64 * 1024**2  # bytes of a model: below, looking for garbage costs more than the garbage


def convert(folder: Path, progress: Progress) -> None:
    """From the upload to artifacts in ``out/`` and a draft of the report. Raises ``EngineError``."""
    task = Task.read(folder)
    watch = Stopwatch(progress)
    _prepare(task)

    draft = (_by_torch if task.spec.backend == "eager" else _by_graph)(task, folder, watch)
    draft.model_copy(update={"timings_s": watch.seconds, "peak_memory_bytes": peak_memory_bytes()}).write(folder)


def _by_torch(task: Task, folder: Path, watch: Stopwatch) -> Draft:
    """``torch.ao`` on the module itself; the program says what its layers are, and what they give in float."""
    with watch("load"):
        program = canonical(_opened(task, folder))
    return backend.convert(task, folder, program, watch)


def _by_graph(task: Task, folder: Path, watch: Stopwatch) -> Draft:
    reference, draft = _quantized(task, folder, watch)
    if task.model_size > WORTH_COLLECTING:
        gc.collect()  # the float weights are gone before the artifacts are written
    with watch("package"):
        written = package(reference, task.spec, folder)
    return draft.model_copy(update={"calls": written.calls, "findings": (*draft.findings, *written.findings)})


def _quantized(task: Task, folder: Path, watch: Stopwatch) -> tuple[Reference, Draft]:
    """The reference, and all that is known before it is written: every layer's row above all."""
    parts = task.spec.report
    with watch("load"):
        program = canonical(_opened(task, folder))
        inputs = signature(program)
        data = read_evaluation(task, folder, inputs)
    with watch("plan"):
        layers, products = find_layers(program)
        if (sound := mended(program, layers, task.spec)) is not program:
            program, (layers, products) = sound, find_layers(sound)
        planned = plan(layers, task.spec, full_range(task.spec))
    remarks = tuple(structure_findings(program, layers, products))  # before smoothing rewrites the graph
    with watch("smooth") as advance:
        smooth = smoothed(program, planned, task.spec.smooth, lambda: read_calibration(task, folder, inputs), advance)
        program, layers, planned = smooth.program, smooth.layers, smooth.planned
    with watch("calibrate") as advance:
        calibrated = ranges_of(program, planned, lambda: read_calibration(task, folder, inputs), parts, advance)
        planned, ranges = calibrated.planned, calibrated.ranges
    with watch("quantize") as advance:
        quantized = quantize(planned, advance, with_stats=parts.weights)
    with watch("correct") as advance:
        wanted = task.spec.bias_correction
        biased = corrected(program, quantized, ranges, wanted, lambda: read_calibration(task, folder, inputs), advance)
        reference = reference_of(biased.program, layers, biased.quantized, ranges)
    with watch("observe") as advance:
        seen = observe(program, layers, quantized, ranges, data, folder / "float.npy", parts, advance)
        rows = with_alphas(report_rows(planned, quantized, seen), smooth.alphas)
    with watch("diagnose") as advance:
        found = diagnose(program, reference, rows, layers, quantized, calibrated, seen, data, parts, advance)
        np.save(folder / "expected.npy", found.expected)
        case = Case(task.spec, program, planned, quantized, found.rows, seen, calibrated)
    return reference, Draft(
        inputs=inputs,
        rows=found.rows,
        products=product_rows(products),
        coverage=coverage(program, planned, rows, seen),
        findings=(*conversion_findings(program, found.rows, quantized, task.spec), *remarks, *defects(case)),
        finite=seen.finite,
        sensitivity=found.sensitivity,
        calibration=found.calibration,
    )


def mended(program: Program, layers: Iterable[Layer], spec: JobSpec) -> Program:
    """``program`` with finite weights where the spec asks for it."""
    wanted = [each for each in layers if weights_for(each.name, spec).non_finite == "repair"]
    broken = non_finite(program) if wanted else {}
    names = [source.name for each in wanted for source in each.sources if source.name in broken]
    return repaired(program, names) if names else program


def _opened(task: Task, folder: Path) -> Program:
    """The upload as a program. One that is no ``.pt2`` is kept as one, for the latency of the float model."""
    dataset = task.evaluation or task.calibration
    program = open_program(folder / task.model_file, task.model.format, folder / dataset if dataset else None)
    if task.model.format != "pt2":
        torch.export.save(program.exported, folder / FLOAT_PROGRAM)
    return program


def verify(folder: Path, progress: Progress) -> None:
    """From artifacts to measurements and ``report.json``. Raises ``EngineError('verification-failed')`` when an
    artifact does not give what the engine computed: it is then not delivered."""
    task, draft = Task.read(folder), Draft.read(folder)
    watch = Stopwatch(progress)
    _prepare(task)

    with watch("verify") as advance:
        data = read_evaluation(task, folder, draft.inputs)
        runs = Runs(draft.artifacts, folder)
        measured = measure_artifacts(runs, draft, data, folder, advance)
    with watch("latency"):
        latency = measure_latency_of(runs, task, data, folder) if task.spec.report.latency else None
    report = report_of(task, draft, data, measured, latency, folder, watch.seconds)
    (folder / "report.json").write_text(report.model_dump_json())


def _prepare(task: Task) -> None:
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.spec.seed)
