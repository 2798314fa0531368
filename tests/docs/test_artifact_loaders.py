"""Every loader in docs/artifacts.md, as it stands there, in an interpreter that has only what its user would have."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.workers.engine import models
from tests.workers.engine.runs import EngineRun, run_engine

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export's own, about the model below

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "artifacts.md").read_text()
BLOCKS = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
FILES = {
    "torchscript": "model.ts.pt", "pt2": "model.pt2", "runtime": "model.pt2", "onnx": "model.onnx",
    "safetensors": "model.safetensors",
}  # fmt: skip
OURS = ("fewbit", "workers", "store", "service")
WITHHELD = {
    "torchscript": (*OURS, "onnx", "onnxruntime", "onnxscript", "safetensors", "torchao", "transformers"),
    "pt2": (*OURS, "onnx", "onnxruntime", "onnxscript", "safetensors", "torchao", "transformers"),
    "runtime": ("workers", "store", "service", "onnx", "onnxruntime", "onnxscript", "safetensors", "torchao",
                "transformers"),
    "onnx": (*OURS, "torch", "onnx", "onnxscript", "safetensors", "torchao", "transformers"),
    "safetensors": (*OURS, "torch", "onnx", "onnxruntime", "onnxscript", "torchao", "transformers"),
}  # fmt: skip

ALONE = """
import json, sys
given = json.load(sys.stdin)

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        withheld = name.partition(".")[0] in given["withheld"]
        return None if withheld else self.finder.find_spec(name, path, target)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
sys.path[:0] = given["path"]
names = {"FILE": given["file"]}
if "torch" not in given["withheld"]:
    import torch

    torch.manual_seed(0)  # the page's few samples, the same each time
exec(compile(given["block"], "docs/artifacts.md", "exec"), names)
import numpy as np
results = names["weights"] if "weights" in names else {"x": np.asarray(names["x"]), "y": np.asarray(names["y"])}
np.savez("results.npz", **results)
json.dump(names.get("layers"), open("layers.json", "w"))
"""


@pytest.fixture(scope="module", params=["dynamic", "static", "weight_only"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineRun:
    torch.manual_seed(0)
    kinds = ["torchscript", "pt2", "onnx", "safetensors"]
    calibration = {"calibration": {"input": torch.randn(64, 64).numpy()}} if request.param == "static" else {}
    return run_engine(
        tmp_path_factory.mktemp(request.param), models.mlp(), (torch.randn(2, 64),),
        {"input": torch.randn(64, 64).numpy()}, method=request.param, artifacts=kinds, threads=1, **calibration,
    )  # fmt: skip


def results_of(block: str, run: EngineRun, folder: Path) -> dict[str, np.ndarray]:
    """What the block's names hold after it has run, elsewhere."""
    given = {
        "block": BLOCKS[block],
        "file": str(run.artifact(FILES[block])),
        "withheld": WITHHELD[block],
        "path": [str(ROOT)] if block == "runtime" else [],
    }
    command = [sys.executable, "-I", "-W", "ignore", "-c", ALONE]
    done = subprocess.run(command, cwd=folder, input=json.dumps(given), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "results.npz") as file:
        return dict(file)


def sqnr_db(signal: np.ndarray, approximation: np.ndarray) -> float:
    return float(10 * np.log10(np.square(signal).sum() / np.square(signal - approximation).sum()))


def test_the_page_has_one_loader_for_each_way_and_each_is_short() -> None:
    assert set(BLOCKS) == set(FILES)
    assert all(len(block.strip().splitlines()) <= 22 for block in BLOCKS.values())


def test_every_code_block_of_the_page_is_one_that_runs() -> None:
    assert PAGE.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("block", ["torchscript", "pt2", "runtime", "onnx"])
def test_a_loader_gives_what_the_report_says(block: str, run: EngineRun, tmp_path: Path) -> None:
    results = results_of(block, run, tmp_path)
    kind = "torchscript" if block == "runtime" else block  # the kernels it is put on
    output = next(artifact.output for artifact in run.report.artifacts if artifact.kind == kind)
    assert output is not None
    with torch.no_grad():
        floats = torch.export.load(run.folder / "model.pt2").module()(torch.from_numpy(results["x"])).numpy()
    assert sqnr_db(floats, results["y"]) == pytest.approx(output.sqnr_db, abs=4)  # 4 samples here, 64 there


def test_the_runtime_names_the_layers_that_the_report_calls_quantized(run: EngineRun, tmp_path: Path) -> None:
    results_of("runtime", run, tmp_path)
    layers = json.loads((tmp_path / "layers.json").read_text())
    assert layers == [row.name for row in run.report.layers if row.quantized]


def test_the_weights_are_the_models_to_half_a_step(run: EngineRun, tmp_path: Path) -> None:
    weights = results_of("safetensors", run, tmp_path)
    floats = torch.export.load(run.folder / "model.pt2").state_dict
    assert set(weights) == set(floats)
    for name, weight in weights.items():
        step = np.abs(floats[name].detach().numpy()).max() / 127
        assert np.abs(weight - floats[name].detach().numpy()).max() <= step / 2 + 1e-7


@pytest.mark.parametrize("block", sorted(WITHHELD))
def test_an_interpreter_without_what_a_block_needs_really_lacks_it(block: str, run: EngineRun, tmp_path: Path) -> None:
    """Or the tests above would show nothing."""
    needed = re.findall(r"^(?:import|from) (\w+)", BLOCKS[block], re.MULTILINE)[-1]
    given = {"block": BLOCKS[block], "file": "", "withheld": [needed], "path": [str(ROOT)]}
    command = [sys.executable, "-I", "-W", "ignore", "-c", ALONE]
    done = subprocess.run(command, cwd=tmp_path, input=json.dumps(given), text=True, capture_output=True, check=False)
    assert f"No module named '{needed}" in done.stderr
