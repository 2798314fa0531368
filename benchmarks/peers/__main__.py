"""All tables, printed: ``python -m benchmarks.peers``. The measuring processes are the same command with arguments.

One table in this process: ``python -m benchmarks.peers TABLE FOLDER`` leaves ``FOLDER/table.json``.

``python -m benchmarks.peers TABLE FOLDER ROUTE`` times one route alone and leaves ``FOLDER/alone.json``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import warnings
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.peers.child import run_alone
from benchmarks.peers.contest import Entry, time_alone
from benchmarks.peers.show import WIDTH, print_tables
from benchmarks.peers.tables import CONTESTS, Table, table_of_closeness, table_of_quantizing, table_of_turns
from benchmarks.peers.turns import THREADS, Turns
from workers.engine.preload import preload


def main(name: str, folder: Path, route: str | None = None) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(THREADS)
    if route is not None:
        _write(folder / "alone.json", _alone(name, folder, route))
        return
    preload()  # as the fork server does before a job, on one thread
    _import_peers()
    torch.set_num_threads(THREADS)
    _write(folder / "table.json", dataclasses.asdict(_table(name, folder)))


def _table(name: str, folder: Path) -> Table:
    if name == "quantizing":
        return table_of_quantizing(folder)
    if name == "outliers":
        return table_of_closeness(name, folder)
    return table_of_turns(name, folder, lambda entry: _with_alone(entry, name, folder))


def _with_alone(entry: Entry, name: str, folder: Path) -> Entry:
    times = run_alone(name, folder, entry.route.name)
    return dataclasses.replace(entry, alone={label: Turns(**round_times) for label, round_times in times.items()})


def _alone(name: str, folder: Path, route: str) -> dict[str, dict[str, float]]:
    chosen = CONTESTS[name]
    found = next(candidate for candidate in chosen.routes if candidate.name == route)
    times = time_alone(chosen.source(), found, folder)
    return {label: dataclasses.asdict(round_times) for label, round_times in times.items()}


def _import_peers() -> None:
    """What a peer imports is not its time to quantize."""
    import nncf  # noqa: F401
    import onnxruntime.quantization  # noqa: F401
    import openvino  # noqa: F401
    import torch.ao.quantization.quantize_fx  # noqa: F401
    import torchao.quantization  # noqa: F401


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print_tables(Console(width=None if sys.stdout.isatty() else WIDTH))
        sys.exit()
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
