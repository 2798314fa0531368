"""Dockerfile and docker-compose.yml against the code: names are compared here; `make images` runs them."""

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
    assert named == {{"gateway": "service", "worker": "workers"}[stage]}
    assert [module for module in named if importlib.util.find_spec(module) is None] == []


@pytest.mark.parametrize("stage", ["gateway", "worker"])
def test_an_image_installs_its_lock_by_hash_and_nothing_else(stage: str) -> None:
    runs = re.findall(r"^RUN (.*)$", STAGES[stage], re.M)
    torch = ["python requirements/install_torch.py"] if stage == "worker" else []
    lock = f"pip install --no-deps --require-hashes -r requirements/{stage}.lock"
    assert runs == [*torch, lock, "chmod -R a+rX /app"]
    assert "install" not in STAGES["base"].replace("install -d -o fewbit", "")


def test_the_worker_image_installs_the_torch_that_was_tested() -> None:
    assert "COPY requirements/torch.lock requirements/install_torch.py ./requirements/\n" in STAGES["worker"]
    pinned = set(re.findall(r"^(torch==[\d.]+)", (ROOT / "requirements" / "torch.lock").read_text(), re.M))
    assert len(pinned) == 1
    assert pinned <= set(EXTRAS["workers"])


def test_the_gateway_image_has_no_torch() -> None:
    assert "torch" not in closure("service")
    assert "torch" not in STAGES["gateway"] + STAGES["base"]
    assert "workers" not in STAGES["gateway"] + STAGES["base"]


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


def test_redis_knows_a_memory_limit_below_that_of_its_container() -> None:
    redis = COMPOSE["services"]["redis"]
    (known,) = re.findall(r"--maxmemory (\d+)gb ", redis["command"][-1])
    assert 0 < int(known) < int(redis["mem_limit"].removesuffix("g"))


def redis_start(folder: Path, password: str | None = None) -> tuple[str, dict[str, str]]:
    """The password that Redis is started with, and what then lies in its folder for others to read."""
    programs = folder.with_name(f"{folder.name}-programs")
    programs.mkdir(exist_ok=True)
    (server := programs / "valkey-server").write_text('#!/bin/sh\necho "$@"\ncat\n')
    server.chmod(0o755)
    command = [word.replace("$$", "$") for word in COMPOSE["services"]["redis"]["command"]]
    env = {"PATH": f"{programs}:{os.environ['PATH']}"} | ({"FEWBIT_REDIS_PASSWORD": password} if password else {})
    ran = subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True)
    arguments, configuration = ran.stdout.splitlines()
    used = configuration.removeprefix("requirepass ")
    assert arguments.startswith("- --")
    assert used not in arguments
    return used, {path.name: path.read_text().strip() for path in folder.iterdir() if path.stat().st_mode & 0o004}


def test_redis_makes_a_password_once_and_tells_it_to_the_others(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    password, readable = redis_start(one)
    assert re.fullmatch(r"[0-9a-f]{64}", password)
    assert readable == {"REDIS_URL": f"redis://:{password}@redis:6379/0"}
    assert redis_start(one) == (password, readable)
    assert redis_start(other)[0] != password


def test_redis_takes_the_password_that_it_is_given(tmp_path: Path) -> None:
    redis_start(tmp_path)
    given = ("chosen", {"REDIS_URL": "redis://:chosen@redis:6379/0"})
    assert redis_start(tmp_path, "chosen") == given
    assert redis_start(tmp_path) == given


@pytest.mark.parametrize("name", OURS)
def test_the_others_read_redis_address_where_it_lies(name: str, tmp_path: Path) -> None:
    service = COMPOSE["services"][name]
    assert f"redis:{service['environment']['FEWBIT_SECRETS']}:ro" in service["volumes"]
    redis_start(tmp_path, "chosen")
    env = {name: value for name, value in os.environ.items() if "REDIS_URL" not in name}
    script = "from store.settings import StoreSettings; print(StoreSettings().redis_url)"
    read = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env | {"FEWBIT_SECRETS": str(tmp_path)}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert read.stdout.strip() == "redis://:chosen@redis:6379/0"


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
        assert "mode=1777" in mount  # and no uid=, which Podman does not know
        assert "uid=" not in mount


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
    fields |= set(re.findall(r"environ\.get\(\"(FEWBIT_\w+)\"\)", read))
    assert given - fields == set()


@pytest.mark.parametrize("name", OURS)
def test_every_volume_is_declared(name: str) -> None:
    for volume in COMPOSE["services"][name]["volumes"]:
        if isinstance(volume, str):
            assert volume.split(":")[0] in COMPOSE["volumes"]


def test_the_workers_health_check_sees_the_worker_of_its_container_and_no_other(tmp_path: Path) -> None:
    check = json.loads(re.findall(r"HEALTHCHECK .*\\\n\s+CMD (\[.*\])", STAGES["worker"])[0])
    (name,) = re.findall(r"FEWBIT_WORKER=(.+?) exec python -m workers", command_lines("worker"))
    here = subprocess.run(["sh", "-c", f"echo {name}"], capture_output=True, text=True, check=True).stdout.strip()
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as connection:
        announcer = Announcer(connection)

        def healthy() -> bool:
            env = os.environ | {"REDIS_URL": server.url}
            return subprocess.run([sys.executable, *check[1:]], cwd=ROOT, env=env, check=False).returncode == 0

        announcer.announce("another", {"queues": ["small"]})
        assert not healthy()
        announcer.announce(here, {"queues": ["small"]})
        assert healthy()
