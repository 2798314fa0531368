"""``make bench``: every number as a ratio against what one would use instead, both measured in this run."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from benchmarks import engine, fence, overhead, pages, reads, uploads
from benchmarks.peers.show import print_tables

BENCHMARKS = (uploads, reads, overhead, fence, pages, engine)


def main() -> int:
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("measured", "Fewbit", "against", "peer", "ratio", "wanted", "", box=None, pad_edge=False)
    missed = 0
    for benchmark in BENCHMARKS:
        console.print(f"[dim]{(benchmark.__doc__ or '').splitlines()[0]}[/]", highlight=False)
        for result in benchmark.run():
            missed += result.missed
            table.add_row(*result.row())
    console.print(table)
    print_tables(console)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
