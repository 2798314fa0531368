"""The story of a job, in two processes.

``convert`` opens the upload: load, find the layers, plan, quantize, run the float model, write the artifacts.
``verify`` starts fresh and does not open the upload until every artifact has been loaded and run: it measures what
will be delivered, says which kernels ran, times int8 against float, and writes the report.

A folder goes in (``task.json``, the model, the data), and the same folder comes out (``report.json``, ``out/``).
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fewbit.contract.spec import JobSpec
from fewbit.runtime.program import Program
from workers.engine.artifacts.write import write_artifacts
from workers.engine.calibration.bias import correct_biases
from workers.engine.calibration.calibrate import calibrate
from workers.engine.calibration.conversion import Conversion
from workers.engine.calibration.smooth import smooth
from workers.engine.data import read_calibration, read_evaluation, write_examples
from workers.engine.draft import Draft
from workers.engine.eager import backend
from workers.engine.explanation.other_routes import structure_findings
from workers.engine.formats import open_program
from workers.engine.graph.canonicalize import canonicalize
from workers.engine.graph.layers import Layer, Product, find_layers
from workers.engine.graph.names import op_name
from workers.engine.graph.program import signature
from workers.engine.graph.random_draws import random_draws
from workers.engine.measurement.float_pass import observe
from workers.engine.measurement.judge import judge
from workers.engine.measurement.machine import peak_memory_bytes
from workers.engine.measurement.verification import LoadedArtifacts, Measurements, measure_latency
from workers.engine.quantization.plan import full_range, plan, weights_for
from workers.engine.quantization.quantize import quantize
from workers.engine.quantization.reference import Reference, build_reference
from workers.engine.quantization.repair import non_finite, repair_constants
from workers.engine.reporting.assemble import assemble_report
from workers.engine.reporting.defects import Case, find_defects
from workers.engine.reporting.diagnose import diagnose
from workers.engine.reporting.findings import conversion_findings
from workers.engine.reporting.layer_rows import coverage, product_rows
from workers.engine.stopwatch import Progress, Stopwatch
from workers.engine.task import FLOAT_PROGRAM, Task

__all__ = ["Progress", "convert", "verify"]

WORTH_COLLECTING = 64 * 1024**2  # bytes of a model: below, looking for garbage costs more than the garbage


def convert(folder: Path, progress: Progress) -> None:
    """From the upload to artifacts in ``out/`` and a draft of the report. Raises ``EngineError``."""
    task = Task.read(folder)
    stopwatch = Stopwatch(progress)
    _set_up_torch(task)

    convert_upload = _convert_module if task.spec.backend == "eager" else _convert_program
    draft = convert_upload(task, folder, stopwatch)
    draft.model_copy(update={"timings_s": stopwatch.seconds, "peak_memory_bytes": peak_memory_bytes()}).write(folder)


def _convert_module(task: Task, folder: Path, stopwatch: Stopwatch) -> Draft:
    """``torch.ao`` on the module itself. The program says what its layers are, and what they return in float."""
    with stopwatch.time("load"):
        program = canonicalize(_open_upload(task, folder))
    return backend.convert(task, folder, program, stopwatch)


def _convert_program(task: Task, folder: Path, stopwatch: Stopwatch) -> Draft:
    reference, draft = _quantize_program(task, folder, stopwatch)
    if task.model_size > WORTH_COLLECTING:
        gc.collect()  # the float weights are gone before the artifacts are written
    with stopwatch.time("package"):
        written = write_artifacts(reference, task.spec, folder)
    return draft.model_copy(update={"calls": written.calls, "findings": (*draft.findings, *written.findings)})


def _quantize_program(task: Task, folder: Path, stopwatch: Stopwatch) -> tuple[Reference, Draft]:
    """The quantized program, and all that is known before it is written: every layer's row above all."""
    spec = task.spec
    with stopwatch.time("load"):
        program = canonicalize(_open_upload(task, folder))
        inputs = signature(program)
        data = read_evaluation(task, folder, inputs)
        read_calibration_data = partial(read_calibration, task, folder, inputs)
    with stopwatch.time("plan"):
        conversion, products, repaired = _plan_layers(program, spec)
        del program  # smoothing replaces it
    other_routes = tuple(structure_findings(conversion.program, conversion.layers, products))  # of the upload's graph
    with stopwatch.time("smooth") as advance:
        conversion = smooth(conversion, spec.smooth, read_calibration_data, advance)
    with stopwatch.time("calibrate") as advance:
        conversion = calibrate(conversion, read_calibration_data, spec.report, advance)
    with stopwatch.time("quantize") as advance:
        quantized = quantize(conversion.planned, advance, with_stats=spec.report.weights)
        conversion = replace(conversion, quantized=quantized)
    with stopwatch.time("correct") as advance:
        corrected = correct_biases(conversion, spec.bias_correction, read_calibration_data, advance)
        reference = build_reference(corrected.program, conversion.layers, corrected.quantized, conversion.ranges)
    with stopwatch.time("observe") as advance:
        observation = observe(conversion, data, folder / "float.npy", spec.report, advance)
    with stopwatch.time("diagnose") as advance:
        diagnosis = diagnose(conversion, reference, observation, data, spec.report, advance)
        np.save(folder / "expected.npy", diagnosis.expected)
        case = Case(spec, conversion, observation, diagnosis.rows)
    return reference, Draft(
        inputs=inputs,
        rows=diagnosis.rows,
        products=product_rows(products),
        coverage=coverage(conversion, diagnosis.rows, observation),
        findings=(*conversion_findings(conversion, diagnosis.rows, spec), *other_routes, *find_defects(case)),
        finite=observation.finite,
        random=tuple(map(op_name, random_draws(conversion.program))),
        repaired=repaired,
        sensitivity=diagnosis.sensitivity,
        calibration=conversion.calibration.report,
    )


def _plan_layers(program: Program, spec: JobSpec) -> tuple[Conversion, tuple[Product, ...], tuple[str, ...]]:
    """The layers of the program and what is to be done with each; its products of two activations; and the weights that
    were repaired."""
    layers, products = find_layers(program)
    repaired = weights_to_repair(program, layers, spec)
    if repaired:
        program = repair_constants(program, repaired)
        layers, products = find_layers(program)
    return Conversion(program, layers, plan(layers, spec, full_range(spec))), products, repaired


def weights_to_repair(program: Program, layers: Iterable[Layer], spec: JobSpec) -> tuple[str, ...]:
    """The names of weights that are not finite, in the layers for which the spec asks to repair them."""
    wanted = [layer for layer in layers if weights_for(layer.name, spec).non_finite == "repair"]
    broken = non_finite(program) if wanted else {}
    return tuple(source.name for layer in wanted for source in layer.sources if source.name in broken)


def _open_upload(task: Task, folder: Path) -> Program:
    """The upload as a program. If it is not a ``.pt2``, one is saved, to time the float model with."""
    dataset = task.evaluation or task.calibration
    program = open_program(folder / task.model_file, task.model.format, folder / dataset if dataset else None)
    if dataset is None:
        write_examples(program.exported.example_inputs, signature(program), folder)
    if task.model.format != "pt2":
        torch.export.save(program.exported, folder / FLOAT_PROGRAM)
    return program


def verify(folder: Path, progress: Progress) -> None:
    """From artifacts to measurements and ``report.json``. An artifact that does not return what the upload returns, as
    closely as int8 can, is not delivered. Raises ``EngineError('verification-failed')`` when none is."""
    task, draft = Task.read(folder), Draft.read(folder)
    stopwatch = Stopwatch(progress)
    _set_up_torch(task)

    with stopwatch.time("verify") as advance:
        data = read_evaluation(task, folder, draft.inputs)
        artifacts = LoadedArtifacts(draft.artifacts, folder)
        judgement = judge(artifacts, task, draft, data, folder, advance)
    with stopwatch.time("latency"):
        latency = measure_latency(artifacts, task, data, folder) if task.spec.report.latency else None
    draft = draft.without_rejected((*artifacts.kinds, *artifacts.stores), judgement.findings)
    report = assemble_report(task, draft, Measurements(data, judgement.measured, latency, stopwatch.seconds), folder)
    (folder / "report.json").write_text(report.model_dump_json())


def _set_up_torch(task: Task) -> None:
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.spec.seed)
