"""Build uploads and artifacts with the code of one tree: run by path, with that tree as the working directory.

Only names that every tree has are imported, so that one from before a move can be compared with one from after it.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TREE = Path.cwd()
sys.path.insert(0, str(TREE))

import torch  # noqa: E402

from tests.workers.engine import runs, test_situations  # noqa: E402
from tests.workers.engine.situations import SITUATIONS  # noqa: E402

KINDS = ("pt2", "torchscript", "onnx", "safetensors")
SPECS: dict[str, dict[str, Any]] = {
    "dynamic": {"method": "dynamic"},
    "static": {"method": "static"},
    "weight_only": {"method": "weight_only"},
    "int4": {
        "method": "weight_only", "weights": {"dtype": "int4", "granularity": "per_group", "group_size": 16},
    },
}  # fmt: skip
VARYING = frozenset(("timings_s", "time", "peak_memory_bytes", "message", "remedy"))
"""Keys of a draft whose values differ between two runs of one tree, or are prose."""


def main() -> None:
    """``uploads|artifacts FOLDER NAMES METHODS``, both lists as JSON. Artifacts: their digests go to standard output,
    a line of JSON for each job."""
    warnings.simplefilter("ignore")
    what, folder, names, methods = sys.argv[1], Path(sys.argv[2]), *map(json.loads, sys.argv[3:5])
    for name in names:
        if what == "uploads":
            save_upload(name, folder_of(folder, name))
            continue
        for method in methods:
            print(json.dumps({"job": f"{name} | {method}", "digests": digests(name, folder, method)}), flush=True)


def folder_of(folder: Path, name: str) -> Path:
    return folder / f"{list(SITUATIONS).index(name):03d}"


def save_upload(name: str, folder: Path) -> None:
    """``model.pt2``, and ``evaluation.npz`` with the situation's own example."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    situation = SITUATIONS[name]
    model, example, keywords = situation.build().eval(), situation.example(), dict(situation.keywords)
    np.savez(folder / "arrays.npz", **test_situations.as_arrays(model, example, keywords))
    runs.export(model, example, folder / "model.pt2", situation.dynamic, keywords, situation.decompose)


def digests(name: str, folder: Path, method: str) -> dict[str, str]:
    """By the name of each file, and of each entry of those that are archives, the digest of its bytes; by the path of
    each value in the draft of the report, that value. One entry, ``error``, for a job that failed."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            convert(folder_of(folder, name), Path(scratch), method)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        held = {file.name: file.read_bytes() for file in sorted(Path(scratch, "out").iterdir())}
        draft = json.loads(Path(scratch, "draft.json").read_bytes())
        entries = {f"{file}/{entry}": content for file in held for entry, content in entries_of(held[file])}
        values = {f"draft{path}": value for path, value in values_of(draft, "")}
        return {file: hashlib.sha256(content).hexdigest() for file, content in (held | entries).items()} | values


def convert(upload: Path, folder: Path, method: str) -> None:
    """One job's conversion, on the upload's own example."""
    shutil.copy(upload / "model.pt2", folder)
    shutil.copy(upload / "arrays.npz", folder / "data.npz")
    spec: dict[str, Any] = {**SPECS[method], "artifacts": KINDS, "evaluation": {"dataset": "dst_test"}}
    if method == "static":
        spec["calibration"] = {"dataset": "dst_calibration"}
    runs.Task(
        job="job_test",
        model=runs.ReportModel(id="mdl_test", sha256="", format="pt2"),
        model_file="model.pt2",
        model_size=(folder / "model.pt2").stat().st_size,
        spec=runs.JobSpec.model_validate({"model": "mdl_test", **spec}),
        calibration="data.npz" if method == "static" else None,
        evaluation="data.npz",
        threads=1,
    ).write(folder)
    runs.convert(folder, lambda stage, share: None)


def entries_of(content: bytes) -> Iterator[tuple[str, bytes]]:
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield from ((entry.filename, archive.read(entry)) for entry in archive.infolist())
    elif content[8:9] == b"{":  # safetensors: the header's length, the header, the data
        end = 8 + int.from_bytes(content[:8], "little")
        yield "header", json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
        yield "data", content[end:]


def values_of(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every plain value of a draft, with the path to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in VARYING:
                yield from values_of(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from values_of(inner, f"{path}/{index}")
    else:
        yield path, json.dumps(value)


if __name__ == "__main__":
    main()
