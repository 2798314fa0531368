"""``docker-compose.yml`` as it is, running under a name of its own until the block is left.

Leaving it removes containers, volumes and networks, whatever happened; entering it removes what a run that was killed
left behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx2

from fewbit.client import Client
from local.images.engine import LABEL, Engine, EngineError, said
from local.stack import free_port

SERVICES = ("redis", "gateway", "worker", "inspector")
READY_S = 180.0
REMOVALS = (
    ("ps --all", "rm --force --volumes"),
    ("volume ls", "volume rm --force"),
    ("network ls", "network rm"),
)


class Composed:
    """The running containers, their address and a key."""

    def __init__(self, engine: Engine, key: str) -> None:
        self.engine = engine
        self.key = key
        self.port = free_port()

    def __enter__(self) -> Self:
        self.remove()
        try:
            self.compose("up", "--detach", "--no-build")
            self.wait_until_ready()
        except BaseException:
            self.print_logs()
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.print_logs()
        self.remove()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Client:
        return Client(self.url, self.key)

    @property
    def env(self) -> dict[str, str]:
        """The key, which one has to set; and a port, because another Fewbit may run here."""
        return {"FEWBIT_API_KEYS": self.key, "FEWBIT_PORT": str(self.port)}

    def compose(self, *arguments: str) -> str:
        return self.engine.composed(*arguments, env=self.env)

    def wait_until_ready(self) -> None:
        """Until ``GET /health/ready`` answers 200. Raises ``EngineError``."""
        until(self.ready, READY_S, f"the service was not ready within {READY_S:.0f} s")

    def ready(self) -> bool:
        try:
            with httpx2.Client(trust_env=False) as http:
                return http.get(f"{self.url}/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def container(self, service: str) -> str:
        """Its id. Raises ``EngineError`` if there is not exactly one."""
        of_service = f"label=com.docker.compose.service={service}"
        found = self.engine("ps", "--quiet", "--filter", f"label={LABEL}", "--filter", of_service).split()
        if len(found) != 1:
            raise EngineError(f"{len(found)} containers run for {service}, not one")
        return found[0]

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of it."""
        described: list[dict[str, Any]] = json.loads(self.engine("inspect", self.container(service)))
        return described[0]

    def inside(self, service: str, *command: str) -> str:
        """What the command printed in the container. Raises ``EngineError`` when it fails."""
        return self.engine("exec", self.container(service), *command)

    def network(self) -> str:
        return self.engine("network", "ls", "--quiet", "--filter", f"label={LABEL}").split()[0]

    def logs(self) -> dict[str, str]:
        """By container name, from the first start on."""
        names = self.engine("ps", "--all", "--filter", f"label={LABEL}", "--format", "{{.Names}}").split()
        return {name: said(self.engine.attempt("logs", name)) for name in names}

    def print_logs(self) -> None:
        try:
            for name, text in self.logs().items():
                print(f"\n---- {name}\n{text[-20_000:]}")
        except EngineError as error:
            print(error)

    def remove(self) -> None:
        """Podman's compose leaves networks, and whatever a killed run started: so by label, with the engine itself."""
        for kind, remove in REMOVALS:
            found = self.engine(*kind.split(), "--quiet", "--filter", f"label={LABEL}").split()
            if found:
                self.engine(*remove.split(), *found)


def until(condition: Callable[[], bool], seconds: float, complaint: str) -> None:
    """Raises ``EngineError`` with the complaint when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise EngineError(complaint)
        time.sleep(0.2)
