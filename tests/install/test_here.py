"""Each lock alone, with what its image or the wheel holds and nothing else, runs: on the Python at hand."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from local.stack import ROOT
from tests.install import scenarios
from tests.install.places import this_machine


def test_the_wheel_holds_the_client_all_of_it_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
    ours = {str(file.relative_to(ROOT)) for file in (ROOT / "fewbit").rglob("*") if file.is_file()}
    assert held == {name for name in ours if "__pycache__" not in name}


def test_client_and_gateway(wheel: Path, tmp_path: Path) -> None:
    scenarios.the_client_sends_a_model_to_the_gateway(this_machine(tmp_path), wheel)


def test_worker(tmp_path: Path) -> None:
    scenarios.the_worker_becomes_healthy(this_machine(tmp_path))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export's own
def test_runtime(wheel: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    scenarios.the_runtime_loads_an_artifact(this_machine(tmp_path), wheel, tmp_path_factory.mktemp("engine"))
