"""Docker or Podman, whichever works here, behind the few commands that both know.

What differs: the program that reads ``docker-compose.yml``, how a base image is missing, whether an own timer runs the
health checks (Podman asks systemd to, and runs them on demand where there is none).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from local.stack import ROOT

PROJECT = "fewbit-images"  # not the name that a user's own `docker compose up` has
LABEL = f"com.docker.compose.project={PROJECT}"  # Podman's compose sets Docker's labels too
TEN_MINUTES = 600.0

# What Podman needs where the host lets a container neither keep the default limits nor start by the default runtime.
MODEST = ("--runtime", "runc", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")


class EngineError(Exception):
    """A command of the engine failed. The message holds the command and the end of what it said."""


@dataclass(frozen=True)
class Engine:
    """A container engine that works on this machine."""

    name: str
    compose: tuple[str, ...]
    run_options: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __call__(self, *arguments: str, timeout: float = TEN_MINUTES) -> str:
        """What the command printed. Raises ``EngineError``."""
        return output([self.name, *arguments], self.env, timeout)

    def attempt(self, *arguments: str, timeout: float = TEN_MINUTES) -> subprocess.CompletedProcess[str]:
        """The same for a command that may fail."""
        return attempt([self.name, *arguments], self.env, timeout)

    def composed(self, *arguments: str, env: Mapping[str, str]) -> str:
        """A command about ``docker-compose.yml``. Raises ``EngineError``."""
        options = [f"--podman-run-args={option}" for option in self.run_options] if self.name == "podman" else []
        return output([*self.compose, "-p", PROJECT, *options, *arguments], {**self.env, **env}, TEN_MINUTES)

    def run(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """One container that is gone afterwards."""
        return self.attempt("run", "--rm", *self.run_options, *arguments, timeout=timeout)

    def has(self, image: str) -> bool:
        return self.attempt("image", "inspect", image).returncode == 0

    def pull(self, image: str) -> bool:
        """Whether the registry has it and answers."""
        return self.attempt("pull", "--quiet", image).returncode == 0

    def healthy(self, container: str) -> bool:
        """What the container's own health check says."""
        if self.name == "podman":
            return self.attempt("healthcheck", "run", container).returncode == 0
        return self("inspect", "--format", "{{.State.Health.Status}}", container).strip() == "healthy"

    def fitted(self, image: str) -> Engine:
        """With the options a container needs to start on this machine. Raises ``EngineError`` if none starts."""
        candidates = [self, replace(self, run_options=MODEST)] if self.name == "podman" else [self]
        for engine in candidates:
            ran = engine.run("--memory", "64m", image, "true")
            if ran.returncode == 0:
                return engine
        raise EngineError(f"{self.name} starts no container here:\n{said(ran)[-2000:]}")


def choose() -> Engine:
    """Docker where its daemon answers and it has Compose, Podman where that is installed. Raises ``EngineError``."""
    if _works("docker", "info") and _works("docker", "compose", "version"):
        return Engine("docker", ("docker", "compose"))
    if _works("podman", "info") and shutil.which("podman-compose"):
        return Engine("podman", ("podman-compose",))
    raise EngineError(
        "No container engine works here: neither Docker with Compose nor Podman with podman-compose. Start Docker, or "
        "install Podman (Debian, Ubuntu: `apt-get install podman podman-compose`)."
    )


def _works(*command: str) -> bool:
    return shutil.which(command[0]) is not None and attempt(list(command), os.environ, 60).returncode == 0


def attempt(command: list[str], env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """The command run from the checkout, without a terminal. Raises ``EngineError`` when it takes too long."""
    try:
        return subprocess.run(
            command, cwd=ROOT, env=env, check=False, timeout=timeout, text=True, errors="replace",
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"`{shlex.join(command)}` took more than {timeout:.0f} s") from error


def said(ran: subprocess.CompletedProcess[str]) -> str:
    """All it printed."""
    return f"{ran.stdout}\n{ran.stderr}".strip()


def output(command: list[str], env: Mapping[str, str], timeout: float) -> str:
    """What the command printed. Raises ``EngineError`` when it fails."""
    ran = attempt(command, env, timeout)
    if ran.returncode:
        raise EngineError(f"`{shlex.join(command)}` ended with {ran.returncode}:\n{said(ran)[-6000:]}")
    return ran.stdout
