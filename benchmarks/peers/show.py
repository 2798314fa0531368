"""The tables on the console, one after the other as they are measured."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.peers.child import run_table

NAMES = ("encoder", "cnn", "quantizing", "outliers")
NEEDED = ("onnx", "onnxscript", "onnxruntime", "nncf", "openvino", "torchao", "transformers")
WIDTH = 160


def print_tables(console: Console) -> None:
    """Every table, or what to install for them. A table that breaks says so and leaves the others theirs."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        console.print(f"peers left out, missing: {', '.join(missing)}. Install them: pip install -e '.\\[bench]'")
        return
    for name in NAMES:
        try:
            _print(console, run_table(name))
        except RuntimeError as error:
            console.print(f"[red]{name}[/] was not measured: {escape(str(error))}")


def _print(console: Console, table: dict[str, Any]) -> None:
    shown = Table(*table["columns"], box=None, pad_edge=False)
    for row in table["rows"]:
        shown.add_row(*map(escape, row))
    console.print(f"\n[bold]{table['title']}[/]\n[dim]{table['caption']}[/]", highlight=False)
    console.print(shown)
