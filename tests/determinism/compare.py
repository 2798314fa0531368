"""Build artifacts with two trees of this repository, from the same uploads, and list every byte that differs:

    python -m tests.determinism.compare OLD_TREE NEW_TREE [--folder F] [--only TEXT] [--every N] [--methods M]

``--folder`` keeps the uploads and the old tree's digests: the next comparison builds only what is missing there, and
the new tree's. All of it takes half an hour on two quiet cores; ``--every 6`` a sixth of that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.workers.engine.situations import SITUATIONS

BUILD = Path(__file__).with_name("build.py")
METHODS = ("dynamic", "static", "weight_only", "int4")
UNORDERED = ("model.safetensors",)  # its header and data are compared: old trees wrote the header in any order
SHOWN = 8  # differences of one job

Digests = dict[str, dict[str, str]]
"""By job, by file: see ``build.digests``."""


def build_uploads(tree: Path, folder: Path, names: Sequence[str]) -> None:
    subprocess.run(command("uploads", folder, names, ()), cwd=tree, check=True)


def build_artifacts(tree: Path, folder: Path, names: Sequence[str], methods: Sequence[str], processes: int) -> Digests:
    """Of the uploads in ``folder``, with the code of ``tree``."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            command("artifacts", folder, names[start::processes], methods), cwd=tree, env=environment,
            stdout=subprocess.PIPE, text=True,
        )
        for start in range(processes)
    ]  # fmt: skip
    lines = [line for process in running for line in process.communicate()[0].splitlines()]
    if any(process.returncode for process in running):
        raise RuntimeError(f"the build with {tree} failed")
    return {job["job"]: job["digests"] for job in map(json.loads, lines)}


def command(what: str, folder: Path, names: Sequence[str], methods: Sequence[str]) -> list[str]:
    arguments = [what, str(folder.absolute()), json.dumps(list(names)), json.dumps(list(methods))]
    return [sys.executable, str(BUILD), *arguments]


def differences(old: Digests, new: Digests) -> Iterator[tuple[str, list[str]]]:
    """By job, the files, archive entries and report values that differ or are missing on one side."""
    for job in old.keys() & new.keys():
        before, after = old[job], new[job]
        changed = [name for name in before | after if before.get(name) != after.get(name) and name not in UNORDERED]
        if changed:
            yield job, [f"{name}: {before.get(name)} -> {after.get(name)}" for name in changed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", default="", help="situations whose name holds this text, or one of several: a|b")
    parser.add_argument("--every", type=int, default=1, help="of those, each Nth")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return compare(options, options.folder or Path(scratch))


def compare(options: argparse.Namespace, folder: Path) -> int:
    wanted = options.only.split("|")
    names = [name for name in SITUATIONS if any(text in name for text in wanted)][:: options.every]
    methods = options.methods.split(",")
    old = old_digests(options, folder, names, methods)
    new = build_artifacts(options.new, folder, names, methods, options.processes)
    found = dict(differences(old, new))
    for job, lines in found.items():
        print(f"{job}: {len(lines)} differ", *lines[:SHOWN], sep="\n    ")
    print(f"{len(new)} jobs compared, {len(found)} differ")
    return 1 if found else 0


def old_digests(options: argparse.Namespace, folder: Path, names: Sequence[str], methods: Sequence[str]) -> Digests:
    """What the folder holds already, and what is missing there of these jobs."""
    saved = folder / "old.json"
    if not saved.exists():
        build_uploads(options.old, folder, list(SITUATIONS))
    known: Digests = json.loads(saved.read_text()) if saved.exists() else {}
    missing = [name for name in names if any(f"{name} | {method}" not in known for method in methods)]
    if missing:
        known |= build_artifacts(options.old, folder, missing, methods, options.processes)
        saved.write_text(json.dumps(known, indent=1))
    return known


if __name__ == "__main__":
    sys.exit(main())
