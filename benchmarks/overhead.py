"""Wall time from POST /jobs to succeeded, less the engine's own time, on a warm worker."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.models import mlp, samples
from benchmarks.result import Result
from local.stack import Stack

JOBS = 15
LIMIT_S = 0.4


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory(prefix="fewbit-bench-") as name:
        folder = Path(name)
        with Stack(folder / "stack") as stack, stack.client() as client:
            model = client.upload_model(mlp(folder / "mlp.pt2"))
            dataset = client.upload_dataset(samples(folder / "samples.npz"))
            spec = {"model": model.id, "evaluation": {"dataset": dataset.id}}
            extra = []
            for index in range(JOBS + 2):
                began = time.perf_counter()
                job = client.wait(client.create_job(spec))
                wall = time.perf_counter() - began
                engine = sum(client.report(job).provenance.timings_s.values())
                if index >= 2:  # the first ones warm up what a fork does not inherit
                    extra.append(wall - engine)
    p50 = statistics.median(extra)
    yield Result("a job's wall time less the engine's, p50", f"{p50:.2f} s", "limit", f"{LIMIT_S} s", p50 / LIMIT_S,
                 at_most=1.0)  # fmt: skip
