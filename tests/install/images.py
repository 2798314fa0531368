"""An image as the Dockerfile has it, made without an engine: its lock, the folders it copies, the command it runs."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from local.stack import ROOT, free_port
from store.embedded import EmbeddedRedis
from tests.install.places import Place

START_S = 120.0
KEY = "a-key-for-tests"
TORCH_ONLY = "fewbit.runtime"
"""What of the client's package wants torch, which neither the gateway nor the client has."""
IMPORT = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"


@dataclass(frozen=True)
class Stage:
    """What the Dockerfile says of one image: what it copies where, how it installs, what it runs."""

    name: str
    copied: tuple[tuple[str, str], ...]
    installing: tuple[str, ...]
    command: tuple[str, ...]
    check: tuple[str, ...]


def stage(name: str) -> Stage:
    text = (ROOT / "Dockerfile").read_text()
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", text, re.M | re.S))
    lines = [line.split() for line in re.findall(r"^COPY (?!--from)(.+)$", stages[name], re.M)]
    copied = tuple((source, goal) for *sources, goal in lines for source in sources)
    installing = re.findall(r"^RUN ((?:pip|python) .*)$", stages[name], re.M)
    check, command = re.findall(r"^(?: +)?CMD (\[.*\])$", stages[name], re.M)
    return Stage(name, copied, tuple(installing), tuple(json.loads(command)), tuple(json.loads(check)))


@dataclass(frozen=True)
class Environment:
    """A virtual environment of one lock in a place. ``app`` is where an image's folders lie, as seen there."""

    place: Place
    name: str

    @property
    def bin(self) -> Path:
        return self.place.seen / self.name / "venv" / "bin"

    @property
    def app(self) -> Path:
        return self.place.seen / self.name / "app"

    def run(self, *words: str | Path, **env: str) -> str:
        return self.place.run(*words, cwd=self.app, PATH=f"{self.bin}:/usr/bin:/bin", **env)

    def python(self, *words: str | Path) -> str:
        return self.run(self.bin / "python", *words)

    def modules(self) -> list[str]:
        """The names of all modules in its app folder, but those that are a command."""
        top = self.place.folder / self.name / "app"
        found = [file.relative_to(top).with_suffix("") for file in top.rglob("*.py") if file.stem != "__main__"]
        files = [file for file in found if file.parts[0] != "requirements"]
        return sorted(".".join(file.parts).removesuffix(".__init__") for file in files)


def empty(place: Place, name: str) -> Environment:
    made = Environment(place, name)
    (place.folder / name / "app").mkdir(parents=True)
    place.run(place.python, "-m", "venv", made.bin.parent)
    return made


def build(place: Place, lock: str, torch: bool = False) -> Environment:
    """The environment that a lock alone gives."""
    made, requirements = empty(place, lock), place.seen / lock / "requirements"
    shutil.copytree(ROOT / "requirements", place.folder / lock / "requirements")
    if torch:
        made.python(requirements / "install_torch.py")
    pip = ("-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", "--no-deps")
    made.python(*pip, "--require-hashes", "-r", requirements / f"{lock}.lock")
    made.python("-m", "pip", "check")
    return made


def image(place: Place, name: str) -> tuple[Environment, Stage]:
    """The environment of an image, made by the commands of the Dockerfile from what it copies."""
    made, described = empty(place, name), stage(name)
    for source, goal in described.copied:
        to = place.folder / name / "app" / goal
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            to.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, to)
    for command in described.installing:
        made.run("sh", "-c", command)
    made.python("-m", "pip", "check")
    return made, described


def import_everything(made: Environment, torch: bool = False) -> None:
    """Every module there is; without torch, all that do not want it."""
    names = [name for name in made.modules() if torch or not name.startswith(TORCH_ONLY)]
    assert len(names) > 10
    made.python("-c", IMPORT, *names)


class Running:
    """An entry point that runs in its environment, on a Redis of its own, which ``redis`` is."""

    def __init__(self, made: Environment, described: Stage, redis: EmbeddedRedis, **env: str) -> None:
        self.made, self.described, self.redis = made, described, redis
        folder = made.place.folder / made.name
        self.log = folder / "log.txt"
        self.seen = made.place.seen / made.name
        (folder / "scratch").mkdir()
        self.env = {
            "PATH": f"{made.bin}:/usr/bin:/bin",
            "REDIS_URL": f"unix://{self.seen / 'redis' / redis.socket.name}",
            "FEWBIT_BLOBS_URL": str(self.seen / "blobs"),
            "TMPDIR": str(self.seen / "scratch"),
            "HOSTNAME": "a-container",
            **env,
        }

    def start(self, command: tuple[str, ...]) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.made.place.command(*command, cwd=self.made.app, **self.env),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def healthy(self) -> bool:
        """What the image's own health check says."""
        command = self.made.place.command(*self.described.check, cwd=self.made.app, **self.env)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_S
        while not self.healthy():
            words = self.log.read_text(errors="replace")[-6000:]
            assert self.process.poll() is None, f"{self.made.name} ended with {self.process.poll()}:\n{words}"
            assert time.monotonic() < deadline, f"{self.made.name} is not healthy after {START_S:.0f} s:\n{words}"
            time.sleep(0.2)


@contextmanager
def running(made: Environment, described: Stage, port: int = 8000, **env: str) -> Iterator[Running]:
    """Its command as the Dockerfile has it, but for loopback and ``port``, until its health check is content."""
    changed = {"0.0.0.0": "127.0.0.1", "8000": str(port)}
    command = tuple(changed.get(word, word) for word in described.command)
    check = tuple(word.replace(":8000", f":{port}") for word in described.check)
    with EmbeddedRedis(made.place.folder / made.name / "redis") as redis:
        started = Running(made, replace(described, command=command, check=check), redis, **env)
        started.start(command)
        try:
            started.wait_until_healthy()
            yield started
        finally:
            started.stop()


@contextmanager
def gateway(made: Environment, described: Stage) -> Iterator[tuple[Running, str]]:
    """A gateway that is healthy, and its address."""
    port = free_port()
    with running(made, described, port, FEWBIT_API_KEYS=KEY) as started:
        yield started, f"http://127.0.0.1:{port}"
