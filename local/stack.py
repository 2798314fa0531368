"""All of Fewbit on this machine: Redis, gateway, job worker, inspection worker.

    with Stack(Path(".run")) as stack:
        Client(stack.url, stack.key)

Leaving the block stops everything, and so does the death of this process, however it dies.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from fewbit.client import Client
from local.child import Child
from store.embedded import EmbeddedRedis

ROOT = Path(__file__).parents[1]


class StackError(Exception):
    """A part did not start. The message ends with its log."""


class Stack:
    """The parts, their address and a key. All their data is under ``folder``, which no other user may open."""

    def __init__(
        self, folder: Path, *, key: str | None = None, port: int = 0, env: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder.absolute()
        self.key = key or secrets.token_urlsafe(24)
        self.port = port
        self._extra_env = dict(env or {})
        self._children: dict[str, Child] = {}
        self._redis = ExitStack()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Client:
        return Client(self.url, self.key)

    def start(self) -> None:
        """Start every part and wait until the service says that it is ready."""
        make_private(self.folder)
        (self.folder / "logs").mkdir(mode=0o700, exist_ok=True)
        self.port = self.port or free_port()
        self.redis = self._redis.enter_context(EmbeddedRedis(self.folder / "redis"))
        address = ("--host", "127.0.0.1", "--port", str(self.port))
        self._children = {
            "gateway": self._child("gateway", "service", *address),
            "worker": self._worker("worker", "small,large"),
            "inspector": self._worker("inspector", "inspect"),
        }
        for child in self._children.values():
            child.start()
        self.wait_until_ready()

    def stop(self) -> None:
        """Workers first, so that they can hand back their job; Redis last."""
        for child in self._children.values():
            child.ask_to_stop()
        for child in self._children.values():
            child.stop()
        self._redis.close()

    def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        """Wait until ``GET /health/ready`` answers 200. Raises ``StackError`` when a part dies or time runs out."""
        deadline = time.monotonic() + timeout_s
        while not self._ready():
            for child in self._children.values():
                if not child.alive:
                    raise StackError(f"{child.name} stopped right after it started:\n{child.log_tail()}")
            if time.monotonic() > deadline:
                raise StackError(f"Not ready after {timeout_s:.0f} s. The logs are in {self.folder / 'logs'}.")
            time.sleep(0.1)

    def restart_dead_parts(self) -> None:
        """Start the parts again that have died, Redis first. Raises ``StackError`` when Redis does not come up."""
        if not self.redis.alive:
            try:
                self.redis.start()
            except (OSError, RuntimeError) as error:
                raise StackError(str(error)) from error
        for child in self._children.values():
            if not child.alive:
                child.start()

    # For tests

    def kill_worker(self) -> None:
        """Kill the job worker (SIGKILL)."""
        self._children["worker"].kill()

    def start_worker(self) -> None:
        self._children["worker"].start()

    def restart_redis(self, down_s: float = 0.0) -> None:
        """Kill Redis, and start it again on the same files."""
        self.redis.kill()
        time.sleep(down_s)
        self.redis.start()

    @property
    def pids(self) -> dict[str, int | None]:
        return {name: child.pid for name, child in self._children.items()}

    # Parts

    def _ready(self) -> bool:
        try:
            with httpx2.Client(trust_env=False) as http:
                return http.get(f"{self.url}/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def _worker(self, name: str, queues: str) -> Child:
        return self._child(name, "workers", "--queues", queues, "--name", name)

    def _child(self, name: str, module: str, *arguments: str) -> Child:
        command = [sys.executable, "-m", module, *arguments]
        return Child(name, command, env=self._env(), log=self.folder / "logs" / f"{name}.log", cwd=ROOT)

    def _env(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "FEWBIT_REDIS_URL")}
        return inherited | {
            "REDIS_URL": self.redis.url,
            "FEWBIT_BLOBS_URL": str(self.folder / "blobs"),
            "FEWBIT_API_KEYS": self.key,
            "FEWBIT_SANDBOX": "best-effort",
            **self._extra_env,
        }


def make_private(folder: Path) -> None:
    """Create the folder, or take an existing one away from other users: only its owner may open it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)


def free_port(preferred: int = 0) -> int:
    """A free TCP port; the preferred one if it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            return free_port()
        port: int = probe.getsockname()[1]
        return port
