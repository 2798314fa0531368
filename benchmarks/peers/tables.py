"""The four tables: which models, which routes, what the caption must say."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers import fewbit_route, onnx_routes, openvino_routes, torch_routes
from benchmarks.peers.contention import Clock
from benchmarks.peers.contest import Entry, contest, failure_reason
from benchmarks.peers.models import cnn, encoder, encoder_with_outliers
from benchmarks.peers.route import Route
from benchmarks.peers.source import Source, save_fixed, save_float
from benchmarks.peers.turns import Turns

STATIC: dict[str, Any] = {"method": "static", "calibration": {"dataset": "bench", "samples": 128, "batch_size": 8}}
SMOOTH: dict[str, Any] = {"smooth": {"alpha": "auto"}, "weights": {"range": "mse"}}
REPEATS = 4

FEWBIT_DYNAMIC = fewbit_route.route("Fewbit dynamic", "fewbit-dynamic")
FEWBIT_STATIC = fewbit_route.route("Fewbit static", "fewbit-static", **STATIC)
FEWBIT_SMOOTH = fewbit_route.route("Fewbit dynamic, smooth auto, mse", "fewbit-smooth", **SMOOTH)

MEASURED = (
    "ms: median over turns of each turn's fastest of 3 calls, 2 threads, all peers in one process; (ratio to float "
    "torch); ~ where others used the cores too: no basis for a ranking. alone: each in a process of its own, first "
    "shape. Bytes: against the float .pt2. s: from the float file (.pt2, .onnx, or the module) to the delivered one."
)


@dataclass(frozen=True)
class Contest:
    """One model and who competes on it. ``why``: what decides between the last route, ours, and ``rival``."""

    title: str
    caption: str
    source: Callable[[], Source]
    routes: tuple[Route, ...]
    rival: Route | None = None
    why: str = ""


@dataclass(frozen=True)
class Table:
    """Ready to print, and to travel as JSON."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


CONTESTS = {
    "encoder": Contest(
        "BERT encoder, 6 x 384, 22.7 M parameters",
        f"Random weights and random token ids: the dB are no accuracy. {MEASURED}",
        encoder,
        (
            torch_routes.FLOAT,
            torch_routes.AO_DYNAMIC,
            torch_routes.TORCHAO,
            onnx_routes.FLOAT,
            onnx_routes.DYNAMIC,
            openvino_routes.NNCF,
            FEWBIT_DYNAMIC,
        ),
        onnx_routes.DYNAMIC,
        "ONNX Runtime takes one activation scale for the whole batch, Fewbit one for each token: closer by some 2 dB, "
        "and two more readings of every layer's input, which shows where the products are short. In are arithmetic in "
        "place and a heap that keeps its pages; one product for q, k and v gave the same bits and saved nothing (29.4 "
        "against 28.7 ms).",
    ),
    "cnn": Contest(
        "residual CNN, 3 stages, 0.38 M parameters, batch 16 and 1",
        f"Static ranges from the same 128 images for all. {MEASURED}",
        cnn,
        (
            torch_routes.FLOAT,
            torch_routes.AO_STATIC,
            onnx_routes.FLOAT,
            onnx_routes.STATIC,
            openvino_routes.NNCF,
            FEWBIT_STATIC,
        ),
        onnx_routes.STATIC,
        "A call of torch's quantized convolution takes some 50 microseconds whatever the batch (65 for one image, 298 "
        "for 16, by the profiler), and there are 11; torch.ao, on the same kernels, is as slow at batch 1. ONNX "
        "Runtime plans that once. oneDNN's convolutions, which torch also has, take 0.6 to 1.6 times as long at one "
        "image (most of them longer), 0.3 to 1.0 times at 16, and their packed weights cannot be saved.",
    ),
    "outliers": Contest(
        "the encoder with 1 % of LayerNorm channels x 30",
        "Output against float on 64 x 64 random tokens; planted everywhere but in the last LayerNorm.",
        encoder_with_outliers,
        (torch_routes.AO_DYNAMIC, torch_routes.TORCHAO, onnx_routes.DYNAMIC, FEWBIT_DYNAMIC, FEWBIT_SMOOTH),
    ),
}


def table_of_turns(name: str, folder: Path, alone: Callable[[Entry], Entry]) -> Table:
    """Tables 1 and 2. ``alone`` adds to an entry its latency in a process of its own."""
    chosen = CONTESTS[name]
    source = chosen.source()
    entries = [entry if entry.failed else alone(entry) for entry in contest(source, chosen.routes, folder)]
    float_size = (folder / "float.pt2").stat().st_size
    first = next(iter(source.timed))
    columns = ("", "bytes / float", *(f"ms, {label}" for label in source.timed), "alone", "SQNR dB", "s", "")
    rows = [_row(entry, entries[0], float_size, tuple(source.timed), first) for entry in entries]
    caption = " ".join((chosen.caption, _busy(entries), _against(chosen, entries)))
    return Table(chosen.title, caption, columns, rows)


def table_of_closeness(name: str, folder: Path) -> Table:
    """Table 4: decibels only."""
    chosen = CONTESTS[name]
    entries = contest(_untimed(chosen.source()), chosen.routes, folder)
    rows = [(entry.route.name, "-" if entry.failed else _decibels(entry.sqnr_db), entry.remark) for entry in entries]
    return Table(chosen.title, chosen.caption, ("", "SQNR dB", ""), rows)


Ready = Callable[[Source, Path], Callable[[], object]]
"""From a folder with the float files to what is to be timed."""

QUANTIZING: dict[str, Ready] = {
    "Fewbit dynamic, report off": partial(fewbit_route.upload_to_artifact, {}),
    "Fewbit static, report off": partial(fewbit_route.upload_to_artifact, STATIC),
    "NNCF on the torch program, fixed shape": partial(partial, openvino_routes.quantize_torch),
    "NNCF on the OpenVINO model": partial(partial, openvino_routes.quantize_openvino),
}


def table_of_quantizing(folder: Path) -> Table:
    """Table 3: from the float file to the quantized one, the best of a few; Fewbit's also against each of NNCF's."""
    clock, columns = Clock.now(), dict[str, list[str]]()
    for source in (encoder(), cnn()):
        at = folder / source.name
        at.mkdir()
        save_float(source, at)
        save_fixed(source, at)
        times = [_best(ready, source, at) for ready in QUANTIZING.values()]
        columns[source.name] = [_seconds(time, times[2:] if index < 2 else ()) for index, time in enumerate(times)]
    rows = [(name, *(cells[index] for cells in columns.values())) for index, name in enumerate(QUANTIZING)]
    caption = (
        f"Imports and data in memory or on disk before; the best of {REPEATS}; the same 128 samples for all that "
        "calibrate (Fewbit dynamic does not); (ratio to NNCF on the torch program, on the OpenVINO model). Other "
        f"processes kept {clock.others(Clock.now()):.1f} cores busy meanwhile. What is left of the CNN's static job: a "
        "third float convolutions, a quarter exact histograms, where NNCF keeps minimum and maximum, a sixth torch's "
        "loader. Counting a part of the values would take most of the histograms' time away, and with it that ranges "
        "are the same in whatever order and batches samples come."
    )
    return Table("time to quantize, load to artifact", caption, ("", *(f"{name}, s" for name in columns)), rows)


def _best(ready: Ready, source: Source, folder: Path) -> float | str:
    """Seconds; or why there are none."""
    seconds = []
    for _ in range(REPEATS):
        try:
            call = ready(source, folder)
            began = time.perf_counter()
            call()
        except Exception as error:
            return failure_reason(error)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _seconds(time: float | str, rivals: Sequence[float | str]) -> str:
    if isinstance(time, str):
        return time
    ratios = ", ".join("-" if isinstance(rival, str) else f"{time / rival:.2f}" for rival in rivals)
    return f"{time:.2f} ({ratios})" if ratios else f"{time:.2f}"


def _untimed(source: Source) -> Source:
    return replace(source, timed={})


def _row(entry: Entry, base: Entry, float_size: int, labels: tuple[str, ...], first: str) -> tuple[str, ...]:
    if entry.failed:
        return entry.route.name, *("-" for _ in range(len(labels) + 4)), entry.remark
    return (
        entry.route.name,
        f"{entry.size / float_size:.3f}",
        *(_latency(entry.turns[label], base.turns[label]) for label in labels),
        _latency(entry.alone[first], base.alone[first]),
        _decibels(entry.sqnr_db),
        f"{entry.seconds:.2f}",
        entry.remark,
    )


def _busy(entries: Sequence[Entry]) -> str:
    turns = [times for entry in entries for times in (*entry.turns.values(), *entry.alone.values())]
    worst = max((turn.others for turn in turns), default=0.0)
    return f"Other processes kept up to {worst:.1f} cores busy meanwhile."


def _against(chosen: Contest, entries: Sequence[Entry]) -> str:
    """By how much the last route is slower than its rival, or faster, and why."""
    rival, ours = (
        next(entry for entry in entries if entry.route == route) for route in (chosen.rival, chosen.routes[-1])
    )
    if rival.failed or ours.failed:
        return ""
    pairs = [(label, ours.turns[label], rival.turns[label]) for label in ours.turns]
    pairs += [("alone", *(next(iter(entry.alone.values())) for entry in (ours, rival)))]
    ratios = ", ".join(f"{mine.p50 / theirs.p50:.2f} at {label}" for label, mine, theirs in pairs)
    return f"\n{ours.route.name} / {rival.route.name}: {ratios}. {chosen.why}".replace("at alone", "alone")


def _latency(mine: Turns, base: Turns) -> str:
    mark = "~" if mine.noisy or base.noisy else ""
    return f"{mine.p50:.2f} ({mine.p50 / base.p50:.2f}){mark}"


def _decibels(value: float) -> str:
    return "" if math.isinf(value) else f"{value:.1f}"
