"""A worker that lacks something says what, where and what to do, and takes no message."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from local.stack import free_port
from store.embedded import EmbeddedRedis
from tests.environment import ROOT, python_with_broken, python_without, refusal
from workers.engine.imports import LATER, later_imports_tried


@pytest.fixture
def env(redis_server: EmbeddedRedis, tmp_path: Path) -> dict[str, str]:
    """All it needs."""
    return {
        "REDIS_URL": redis_server.url,
        "FEWBIT_BLOBS_URL": str(tmp_path / "blobs"),
        "FEWBIT_SCRATCH": str(tmp_path / "scratch"),
        "FEWBIT_STARTUP_S": "1",
    }


@pytest.mark.parametrize("package", ["redis", "celery", "kombu", "packaging", "structlog", "billiard"])
def test_a_package_that_its_supervisor_lacks_is_named(env: dict[str, str], tmp_path: Path, package: str) -> None:
    (line,) = refusal("workers", env, python=python_without(package, tmp_path / "venv"))
    assert f"No module named '{package}" in line
    assert "requirements/worker.lock" in line


@pytest.mark.parametrize("package", ["torch", "torchmetrics"])
def test_a_package_that_its_engine_lacks_is_named(env: dict[str, str], tmp_path: Path, package: str) -> None:
    (line,) = refusal("workers", env, python=python_without(package, tmp_path / "venv"))
    assert "the engine does not start" in line
    assert f"No module named '{package}" in line
    assert "requirements/torch.lock" in line


def test_a_package_that_is_broken_in_its_engine_is_named(env: dict[str, str], tmp_path: Path) -> None:
    (line,) = refusal("workers", env, python=python_with_broken("onnxruntime", tmp_path / "venv"))
    assert "importing onnxruntime failed: AttributeError: parts do not fit" in line


Wrong = Callable[[Path], dict[str, str]]


def wrong_password(folder: Path) -> dict[str, str]:
    return {"REDIS_URL": "redis://:a-secret@127.0.0.1:PORT/0", "FEWBIT_STARTUP_S": "600"}


def no_redis(folder: Path) -> dict[str, str]:
    return {"REDIS_URL": "redis://127.0.0.1:1/0"}


def no_blobs(folder: Path) -> dict[str, str]:
    (folder / "a-file").write_text("")
    return {"FEWBIT_BLOBS_URL": str(folder / "a-file")}


def no_scratch(folder: Path) -> dict[str, str]:
    return {"FEWBIT_SCRATCH": "/proc/self/scratch"}


def wrong_setting(folder: Path) -> dict[str, str]:
    return {"FEWBIT_THREADS": "many"}


def wrong_queues(folder: Path) -> dict[str, str]:
    return {"FEWBIT_QUEUES": "small,huge"}


@pytest.mark.parametrize("entry", [("workers",), ("celery", "-A", "workers.celery", "worker", "--pool", "threads")])
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (wrong_password, "Redis at redis://127.0.0.1:PORT/0 cannot be used (AuthenticationError: invalid username"),
        (no_redis, "no Redis at redis://127.0.0.1:1/0 within 1 s"),
        (no_blobs, "blobs cannot be written to "),
        (no_scratch, "Set FEWBIT_SCRATCH to a folder"),
    ],
)
def test_what_it_cannot_reach_is_named_however_it_is_started(
    env: dict[str, str], tmp_path: Path, entry: tuple[str, ...], wrong: Wrong, named: str
) -> None:
    with EmbeddedRedis(tmp_path / "guarded") as server, Redis.from_url(server.url) as client:
        port = str(free_port())
        client.config_set("port", port)
        client.config_set("requirepass", "another")
        given = {name: value.replace("PORT", port) for name, value in wrong(tmp_path).items()}
        (line,) = refusal(entry[0], env | given, *entry[1:])
    assert named.replace("PORT", port) in line


@pytest.mark.parametrize(("wrong", "named"), [(wrong_setting, "FEWBIT_THREADS"), (wrong_queues, "FEWBIT_QUEUES")])
def test_a_setting_that_cannot_be_is_named(env: dict[str, str], tmp_path: Path, wrong: Wrong, named: str) -> None:
    (line,) = refusal("workers", env | wrong(tmp_path))
    assert named in line


def test_a_sandbox_that_is_required_and_not_there_is_named(env: dict[str, str]) -> None:
    script = "from tests.workers.forbidding import forbid_landlock; forbid_landlock(); import runpy; "
    script += "runpy.run_module('workers', run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | env | {"FEWBIT_SANDBOX": "required"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "The worker cannot start: this kernel lacks Landlock" in ended.stderr
    assert "FEWBIT_SANDBOX=best-effort" in ended.stderr


def test_all_that_the_engine_imports_later_is_tried_at_once() -> None:
    """A job must not be the first to find that a package is missing."""
    ours, tried = sys.stdlib_module_names | {"workers", "fewbit"}, set(LATER)
    late: set[str] = set()
    for path in (ROOT / "workers" / "engine").rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                late |= {name for node in ast.walk(function) for name in imported(node)}
    assert {name for name in late if name.partition(".")[0] not in ours} - tried == set()
    assert len(late & tried) > 5


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_an_import_that_ends_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does for which there is no memory."""
    (tmp_path / "crashing_module.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        pytest.raises(ImportError, match=r"crashing_module ended with status -9"),
        later_imports_tried(("crashing_module",)),
    ):
        pass
