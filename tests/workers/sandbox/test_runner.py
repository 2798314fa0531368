"""The forked child, with the real engine: how it shuts itself in, and what it answers for good and bad uploads."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from fewbit.contract.report import Report, ReportModel
from fewbit.contract.spec import JobSpec
from tests.workers import uploads
from tests.workers.stage_requests import stage_request
from workers.engine.task import Task
from workers.errors import EngineError
from workers.sandbox import runner
from workers.sandbox.child import run_child
from workers.sandbox.fork_server import ForkServer
from workers.sandbox.outcome import ChildOutcome


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uploads.mlp(tmp_path_factory.mktemp("models") / "model.pt2")


@pytest.fixture
def forks(engine: ForkServer) -> ForkServer:
    return engine


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """A job's folder as the supervisor makes it."""
    folder = tmp_path / "job"
    folder.mkdir(mode=0o700)
    shutil.copy(model, folder / "model")
    Task(
        job="job_1",
        model=ReportModel(id="mdl_1", sha256="0" * 64, format="pt2"),
        model_size=model.stat().st_size,
        spec=JobSpec(model="mdl_1"),
        threads=1,
    ).write(folder)
    return folder


def stage(forks: ForkServer, name: str, folder: Path, messages: list[tuple[str, Any]] | None = None) -> ChildOutcome:
    received = messages if messages is not None else []
    request = stage_request(name, folder)
    return run_child(forks, request, time.monotonic() + 60, on_message=lambda *message: received.append(message))


def test_an_inspection_gives_the_layer_table(forks: ForkServer, folder: Path) -> None:
    end = stage(forks, "inspect", folder)
    assert end.failure is None, end.output_tail
    assert end.result is not None
    assert [layer["name"] for layer in end.result["inspection"]["layers"]] == ["0", "2"]


def test_two_stages_make_a_report_and_artifacts(forks: ForkServer, folder: Path) -> None:
    messages: list[tuple[str, Any]] = []
    for name in ("convert", "verify"):
        end = stage(forks, name, folder, messages)
        assert end.failure is None, end.output_tail
    report = Report.model_validate_json((folder / "report.json").read_bytes())
    assert {artifact.name for artifact in report.artifacts} == {path.name for path in (folder / "out").iterdir()}
    stages = [value[0] for kind, value in messages if kind == "progress"]
    assert stages[0] == "scan"
    assert "quantize" in stages


@pytest.mark.parametrize("name", ["inspect", "convert"])
def test_a_hostile_upload_is_refused_and_nothing_runs(forks: ForkServer, folder: Path, name: str) -> None:
    canary = folder.parent / "canary"
    payload = uploads.torch_saved(((uploads.Hostile(os.system, f"touch {canary}"),), {}))
    uploads.with_entry(folder / "model", folder / "hostile", "data/sample_inputs/model.pt", payload)
    (folder / "hostile").replace(folder / "model")
    failure = stage(forks, name, folder).failure
    assert failure is not None
    assert failure.slug == "unsafe-model"
    assert "posix.system" in failure.detail
    assert not canary.exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"method": "weight_only", "layers": [{"match": "*", "weights": {"granularity": "per_group"}}]}, "group_size"),
        ({"method": "hopeful"}, "/method"),
    ],
)
def test_a_spec_that_cannot_work_is_not_retryable(
    forks: ForkServer, folder: Path, asked: dict[str, Any], words: str
) -> None:
    """The gateway refuses it; one that came by another way ends as what it is, and not as a fault of the engine."""
    task = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps(task | {"spec": {"model": "mdl_1"} | asked}))
    failure = stage(forks, "convert", folder).failure
    assert failure is not None
    assert (failure.slug, failure.retryable) == ("quantization-failed", False)
    assert words in failure.detail


def test_without_the_scan_torch_still_does_not_unpickle(forks: ForkServer, folder: Path) -> None:
    """The second wall: the child's environment makes torch ignore its own fallback to unrestricted pickles."""
    canary = folder.parent / "canary"
    payload = uploads.torch_saved(((uploads.Hostile(os.system, f"touch {canary}"),), {}))
    uploads.with_entry(folder / "model", folder / "hostile.pt2", "data/sample_inputs/model.pt", payload)
    server = ForkServer("tests.workers.children:main", "tests.workers.children:preload_torch")
    request = {"deed": "load unscanned", "folder": str(folder), "model": str(folder / "hostile.pt2")}
    end = run_child(server, request, time.monotonic() + 60)
    server.stop()
    assert end.exit_code == 1
    assert "UnpicklingError" in end.output_tail
    assert not canary.exists()


def test_a_truncated_upload_is_an_invalid_model(forks: ForkServer, folder: Path) -> None:
    (folder / "model").write_bytes((folder / "model").read_bytes()[:1000])
    failure = stage(forks, "inspect", folder).failure
    assert failure is not None
    assert failure.slug == "invalid-model"


def test_the_child_keeps_no_secrets_and_no_way_to_dump_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("REDIS_URL", "redis://secret")
    server = ForkServer("tests.workers.children:main", "tests.workers.children:preload")
    child = server.fork({"deed": "shut in", "folder": str(tmp_path)})
    seen = json.loads(os.read(child.messages, 4096))
    child.close()
    server.stop()
    assert not {"AWS_SECRET_ACCESS_KEY", "REDIS_URL"} & set(seen["environment"])
    assert seen["cwd"] == str(tmp_path)
    assert seen["core"] == [0, 0]
    assert seen["umask"] == 0o077


@pytest.mark.parametrize(
    ("error", "slug"),
    [
        (EngineError("calibration-failed", "batch 3"), "calibration-failed"),
        (MemoryError(), "out-of-memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."), "out-of-memory"),
        (ZeroDivisionError("division by zero"), "internal-error"),
        (SystemExit(3), "internal-error"),
    ],
)
def test_every_exception_becomes_a_problem(error: BaseException, slug: str) -> None:
    assert runner._problem(error)[0] == slug


def test_an_unexpected_exception_is_named_without_its_traceback() -> None:
    assert runner._problem(KeyError("weight\nof layer"))[1] == "KeyError: 'weight\\nof layer'"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("cannot open '/srv/scratch/job_1/model'", "cannot open 'model'"),
        ('File "/opt/venv/lib/python3.11/site-packages/torch/x.py", line 3', 'File "x.py", line 3'),
        ("see https://docs.example.org/export/guide", "see https://docs.example.org/export/guide"),
        ("encoder/layers/0 has 3/4 of its rows", "encoder/layers/0 has 3/4 of its rows"),
        ("a share of /1 and ./data/model", "a share of /1 and ./data/model"),
    ],
)
def test_a_problem_does_not_reveal_the_workers_folders(said: str, told: str) -> None:
    assert runner.without_folders(said) == told


def test_a_stage_that_misses_a_file_says_which_without_the_folder(forks: ForkServer, folder: Path) -> None:
    (folder / "model").unlink()
    failure = stage(forks, "inspect", folder).failure
    assert failure is not None
    assert "model" in failure.detail
    assert str(folder.parent) not in failure.detail
