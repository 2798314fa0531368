"""Dockerfile and docker-compose.yml against the code: no engine runs here, but names can be compared."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis

from store.embedded import EmbeddedRedis
from store.fleet import Announcer
from store.queue import INSPECT, LARGE, SMALL

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S))
OURS = ("gateway", "worker", "inspector")


def closure(extra: str) -> set[str]:
    """The distributions an extra brings, its own extras followed."""
    names: set[str] = set()
    for requirement in EXTRAS[extra]:
        if inner := re.match(r"fewbit\[([\w,]+)\]", requirement):
            names |= {name for extra in inner[1].split(",") for name in closure(extra)}
        else:
            names.add(re.split(r"[\[<>=!~ ]", requirement)[0])
    return names


def command_lines(stage: str) -> str:
    return "\n".join(re.findall(r"(?:^|\s)CMD (.*)$", STAGES[stage], re.M))


@pytest.mark.parametrize("stage", ["gateway", "worker"])
def test_what_an_image_runs_can_be_imported(stage: str) -> None:
    named = {"".join(found) for found in re.findall(r"-m ([\w.]+)|-A ([\w.]+)|\"([\w.]+):app\"", command_lines(stage))}
    named |= {"".join(found) for found in re.findall(r"\"-m\", \"(\w+)\"", command_lines(stage))}
    assert len(named) == {"gateway": 1, "worker": 2}[stage]
    assert [module for module in named if importlib.util.find_spec(module) is None] == []


@pytest.mark.parametrize("stage", ["gateway", "worker"])
def test_an_image_installs_its_lock_by_hash_and_nothing_else(stage: str) -> None:
    installs = re.findall(r"^RUN (pip install .*)$", STAGES[f"build-{stage}"], re.M)
    assert all(" --no-deps --require-hashes -r requirements/" in line for line in installs)
    assert installs[-1].endswith(f"requirements/{stage}.lock")
    assert f"--from=build-{stage} /opt/venv" in STAGES[stage]


def test_the_worker_image_installs_the_torch_that_was_tested() -> None:
    assert "requirements/torch.lock" in STAGES["build-worker"]
    (pinned,) = re.findall(r"^torch==\S+", (ROOT / "requirements" / "torch.lock").read_text(), re.M)
    assert pinned in EXTRAS["workers"]


def test_the_gateway_image_has_no_torch() -> None:
    assert "torch" not in closure("service")
    assert "torch" not in STAGES["build-gateway"]
    assert "workers" not in STAGES["gateway"]


def test_an_image_copies_only_what_dockerignore_lets_through() -> None:
    let_through = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.M)
    copied = {
        name.rstrip("/") for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for name in line.split()
    }
    assert copied == set(let_through)
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("stage", ["gateway", "worker"])
def test_an_image_does_not_run_as_root_and_says_when_it_is_healthy(stage: str) -> None:
    assert "\nUSER fewbit\n" in STAGES[stage]
    assert "\nHEALTHCHECK " in STAGES[stage]


def test_compose_builds_targets_that_exist() -> None:
    targets = {COMPOSE["services"][name]["build"]["target"] for name in OURS}
    assert targets == {"gateway", "worker"} <= set(STAGES)


def test_compose_covers_every_queue() -> None:
    workers = (COMPOSE["services"][name]["environment"]["FEWBIT_QUEUES"] for name in ("worker", "inspector"))
    assert sorted(",".join(workers).split(",")) == sorted([SMALL, LARGE, INSPECT])


def test_compose_refuses_to_start_without_keys() -> None:
    assert COMPOSE["services"]["gateway"]["environment"]["FEWBIT_API_KEYS"].startswith("${FEWBIT_API_KEYS:?")


def test_redis_neither_forgets_nor_evicts() -> None:
    command = " ".join(COMPOSE["services"]["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


@pytest.mark.parametrize("name", [*OURS, "redis"])
def test_containers_hold_no_privilege(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
    assert {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "userns_mode"} & service.keys() == set()


@pytest.mark.parametrize("name", [*OURS, "redis"])
def test_nothing_that_a_container_can_write_to_can_be_run(name: str) -> None:
    """Its own file system is read-only; what is held in memory is small and mounted noexec."""
    for mount in COMPOSE["services"][name].get("tmpfs", []):
        assert {"noexec", "nosuid", "nodev"} <= set(mount.split(":")[1].split(","))
        assert "size=" in mount


def test_redis_can_be_reached_by_our_containers_alone() -> None:
    assert "ports" not in COMPOSE["services"]["redis"]
    assert all(port.startswith("127.0.0.1:") for port in COMPOSE["services"]["gateway"]["ports"])
    assert all("ports" not in COMPOSE["services"][name] for name in ("worker", "inspector"))


@pytest.mark.parametrize("name", ["gateway", "worker", "inspector"])
def test_a_setting_that_compose_gives_is_one_that_we_read(name: str) -> None:
    given = {variable for variable in COMPOSE["services"][name]["environment"] if variable.startswith("FEWBIT_")}
    read = "".join(
        (ROOT / file).read_text() for file in ("store/settings.py", "service/settings.py", "workers/settings.py")
    )
    fields = {f"FEWBIT_{setting.upper()}" for setting in re.findall(r"^    (\w+): ", read, re.M)} | {"FEWBIT_QUEUES"}
    assert given - fields == set()


@pytest.mark.parametrize("name", OURS)
def test_every_volume_is_declared(name: str) -> None:
    for volume in COMPOSE["services"][name]["volumes"]:
        if isinstance(volume, str):
            assert volume.split(":")[0] in COMPOSE["volumes"]


def test_the_workers_health_check_sees_an_announced_worker_and_no_other(tmp_path: Path) -> None:
    check = json.loads(re.findall(r"HEALTHCHECK .*\\\n\s+CMD (\[.*\])", STAGES["worker"])[0])
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as connection:
        Announcer(connection).announce("container1", {"queues": ["small"]})

        def healthy(hostname: str) -> bool:
            env = os.environ | {"REDIS_URL": server.url, "HOSTNAME": hostname}
            return subprocess.run([sys.executable, *check[1:]], cwd=ROOT, env=env, check=False).returncode == 0

        assert healthy("container1")
        assert not healthy("container2")
