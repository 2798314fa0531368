"""A gateway that lacks something says what, where and what to do, and does not start."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from local.stack import free_port
from store.embedded import EmbeddedRedis
from tests.environment import python_with_broken, python_without, refusal
from tests.service.gateway import Gateway
from tests.service.uploads import model_file, post

PASSWORD = "a-secret-of-redis"


@pytest.fixture
def env(redis_server: EmbeddedRedis, tmp_path: Path) -> dict[str, str]:
    """All it needs."""
    return {
        "REDIS_URL": redis_server.url,
        "FEWBIT_BLOBS_URL": str(tmp_path / "blobs"),
        "FEWBIT_API_KEYS": "key",
        "FEWBIT_STARTUP_S": "1",
    }


@pytest.fixture(scope="module")
def guarded_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a Redis listens that has a password."""
    with EmbeddedRedis(tmp_path_factory.mktemp("guarded")) as server:
        port = free_port()
        with Redis.from_url(server.url) as client:
            client.config_set("port", port)
            client.config_set("requirepass", PASSWORD)
        yield port


@pytest.mark.parametrize(
    "package",
    ["pydantic", "pydantic_settings", "redis", "celery", "kombu", "packaging", "uvicorn", "httptools", "fastapi",
     "numpy", "obstore", "structlog", "markdown_it"],
)  # fmt: skip
def test_a_package_that_is_missing_is_named(env: dict[str, str], tmp_path: Path, package: str) -> None:
    (line,) = refusal("service", env, python=python_without(package, tmp_path / "venv"))
    assert f"No module named '{package}" in line
    assert str(tmp_path / "venv") in line
    assert "requirements/gateway.lock" in line


def test_a_package_that_is_broken_is_named(env: dict[str, str], tmp_path: Path) -> None:
    (line,) = refusal("service", env, python=python_with_broken("python_multipart", tmp_path / "venv"))
    assert "python_multipart/__init__.py, line 1 (AttributeError: parts do not fit)" in line


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://:another-secret@127.0.0.1:PORT/0", "invalid username-password pair"),
        ("redis://nobody:a-secret-of-redis@127.0.0.1:PORT/0", "invalid username-password pair"),
        ("redis://127.0.0.1:PORT/0", "AuthenticationError"),
        ("redis://:a-secret-of-redis@127.0.0.1:PORT/9999", "DB index is out of range"),
        ("http://:a-secret-of-redis@127.0.0.1:PORT/0", "it is no address"),
        ("redis://:a/secret@127.0.0.1:PORT/0", "it is no address"),
    ],
)
def test_a_redis_that_refuses_is_named_at_once(env: dict[str, str], guarded_port: int, url: str, named: str) -> None:
    wrong = {"REDIS_URL": url.replace("PORT", str(guarded_port)), "FEWBIT_STARTUP_S": "600"}
    (line,) = refusal("service", env | wrong)
    assert named in line
    assert f"127.0.0.1:{guarded_port}" in line
    assert "Set REDIS_URL" in line


@pytest.mark.parametrize("url", ["redis://:secret@127.0.0.1:1/0", "unix:///nowhere.sock", "redis://nowhere.invalid/0"])
def test_a_redis_that_stays_away_is_named_after_a_while(env: dict[str, str], url: str) -> None:
    (line,) = refusal("service", env | {"REDIS_URL": url})
    assert f"no Redis at {url.replace(':secret@', '')} within 1 s" in line
    assert "Start it, or set REDIS_URL" in line


def a_file(folder: Path) -> str:
    (folder / "blobs").write_text("")
    return str(folder / "blobs")


def below_a_file(folder: Path) -> str:
    return a_file(folder) + "/deeper"


def closed_inside(folder: Path) -> str:
    """As when another user's process made the folders that blobs lie in."""
    (folder / "blobs").mkdir()
    (folder / "blobs" / "sha256").write_text("")
    return str(folder / "blobs")


def read_only(folder: Path) -> str:
    """For root, too."""
    return "/proc/self/blobs"


@pytest.mark.parametrize("unwritable", [a_file, below_a_file, closed_inside, read_only])
def test_a_blob_folder_that_cannot_be_written_is_named(
    env: dict[str, str], tmp_path: Path, unwritable: Callable[[Path], str]
) -> None:
    blobs = unwritable(tmp_path)
    (line,) = refusal("service", env | {"FEWBIT_BLOBS_URL": blobs})
    assert f"blobs cannot be written to {blobs} (" in line
    assert "set FEWBIT_BLOBS_URL" in line


def test_a_setting_that_cannot_be_read_is_named(env: dict[str, str]) -> None:
    wrong = {"FEWBIT_IDLE_S": "soon", "FEWBIT_MAX_CONNECTIONS": "0"}
    lines = refusal("service", env | wrong)
    assert [line.split()[4] for line in lines] == ["FEWBIT_MAX_CONNECTIONS", "FEWBIT_IDLE_S"]


def test_all_that_is_missing_is_told_at_once(env: dict[str, str], guarded_port: int) -> None:
    wrong = {
        "REDIS_URL": f"redis://127.0.0.1:{guarded_port}/0",
        "FEWBIT_BLOBS_URL": "/dev/null/blobs",
        "FEWBIT_API_KEYS": "",
    }
    redis, blobs, keys = refusal("service", env | wrong)
    assert "Redis" in redis
    assert "/dev/null/blobs" in blobs
    assert "Set FEWBIT_API_KEYS" in keys


def test_a_gateway_that_is_earlier_than_its_redis_waits_for_it(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    gateway = Gateway(tmp_path, server.url)

    def start_once_it_waits() -> None:
        while f"Waiting for Redis at {server.url}" not in (gateway.log if (tmp_path / "gateway.log").exists() else ""):
            time.sleep(0.1)
        server.start()

    late = threading.Thread(target=start_once_it_waits, daemon=True)
    late.start()
    try:
        with gateway:
            assert gateway.http.get("/models").status_code == 200
            late.join()
    finally:
        server.stop()


def test_a_right_that_redis_takes_away_is_an_error_at_once(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server, Gateway(tmp_path, server.url) as gateway:
        with Redis.from_url(server.url) as client:
            client.acl_setuser("default", enabled=True, nopass=True, commands=["-lpush"])
        answer = post(gateway.http, "/models", model_file())
        assert (answer.status_code, answer.json()["type"]) == (500, "/problems/service-error")
        assert re.search(r"\[error +\] unhandled", gateway.log)
        assert "no permissions to run the 'lpush' command" in " ".join(gateway.log.split())
        assert "message not sent; the reaper will  " not in gateway.log


def test_a_password_that_is_changed_meanwhile_is_an_error_at_once(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server, Redis.from_url(server.url) as client:
        port = free_port()
        client.config_set("port", port)
        client.config_set("requirepass", PASSWORD)
        with Gateway(tmp_path, f"redis://:{PASSWORD}@127.0.0.1:{port}/0") as gateway:
            assert gateway.http.get("/models").status_code == 200
            client.config_set("requirepass", "another")
            client.client_kill_filter(_type="normal", skipme=True)
            while (answer := gateway.http.get("/models")).status_code == 503:  # over a connection that was cut
                time.sleep(0.1)
            assert (answer.status_code, answer.json()["type"]) == (500, "/problems/service-error")
            assert re.search(r"\[error +\] unhandled", gateway.log)
            assert PASSWORD not in gateway.log


def test_help_needs_nothing() -> None:
    subprocess.run([sys.executable, "-S", "-m", "service", "--help"], check=True, capture_output=True)
