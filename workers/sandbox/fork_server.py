"""The fork server, seen from the worker: start it, fork children from it, stop it.

The server is a process that has torch imported and only forks children that need it (``fork_server_process.py``).
Importing torch and the engine takes seconds, a fork milliseconds; and the Celery process, which has threads and
sockets, must neither import torch nor be forked. ``multiprocessing``'s forkserver does not fit: its children re-import
``__main__`` (here Celery's), a failing preload goes unreported, and nobody learns when a child's group is dead.

    Celery process                        fork server                         child
    ForkServer.fork(request) --request--> fork() --------------------------> own session, dies with its server
        Child <------------ status socket: "started <pid>", later "exited <code>"
                             <---- socket: the listener of its seccomp filter
        Child <------------ status socket: "violation <system call>", and the child is killed; or
                                            "refused <system call>", and it goes on without
        Child <------------------------------------------------ messages pipe, output pipe (stdout and stderr)
        Child.kill() ------ status socket: "kill" --> SIGKILL to the child's whole group

The server reports an exit only after it has killed the child's group, and before it reaps the child, so the pid cannot
belong to another process yet. When the Celery process dies, for any reason, the control socket closes: the server kills
all groups and exits. When the server dies, the kernel kills its children (``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

ChildRequest = dict[str, Any]

_LONGEST_WORD = 1000  # bytes of what the server says before it is ready
_START_S = 300  # torch from a cold disk
_FORK_S = 30
# What the server keeps of the worker's environment; its children inherit it, and show it in /proc/self/environ.
_KEPT_ENVIRONMENT = (
    "PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "HOME", "TMPDIR",
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME",
)  # fmt: skip


class ForkServerLost(Exception):
    """The fork server is gone: it failed to start, or died. The next ``fork`` starts another."""


@dataclass
class Child:
    """A forked child, as the worker holds it: three descriptors to poll, and its exit code once it has ended."""

    status: socket.socket
    messages: int
    output: int
    pid: int = 0
    forbidden_call: str | None = None  # the system call it was killed for
    refused_call: str | None = None  # a system call that failed; the child may have given up over it
    _closed: bool = field(default=False)

    def kill(self) -> None:
        """SIGKILL the child and all it started. Its exit is reported like any other."""
        with contextlib.suppress(OSError):
            self.status.send(b"kill")

    def exit_code(self) -> int | None:
        """Read a readable ``status``: the exit code, or minus the signal's number; ``None`` if the child still runs.

        Raises ``ForkServerLost`` if the server died first.
        """
        word, _, number = self.status.recv(64).decode().partition(" ")
        if word == "refused":
            self.refused_call = number
            return None
        if word == "violation":
            self.forbidden_call = number
            return self.exit_code()  # the server is killing it
        if word != "exited":
            raise ForkServerLost("The fork server died while a child was running.")
        return int(number)

    def close(self) -> None:
        """Kill what is left of the child, and close the descriptors."""
        if not self._closed:
            self._closed = True
            self.kill()
            self.status.close()
            os.close(self.messages)
            os.close(self.output)


class ForkServer:
    """The server's process and the socket to it. Thread-safe. ``entry`` and ``preload``: ``module:function`` names."""

    def __init__(
        self, entry: str = "workers.sandbox.runner:main", preload: str = "workers.sandbox.runner:preload"
    ) -> None:
        self._command = [sys.executable, "-m", "workers.sandbox.fork_server_process", entry, preload]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Start the server and wait until it has everything imported. Raises ``ForkServerLost`` if it cannot."""
        with self._lock:
            self._running_server()

    def fork(self, request: ChildRequest) -> Child:
        """Fork a child that runs ``entry(request, messages)``. A dead server is replaced, once.

        Raises ``ForkServerLost``.
        """
        try:
            return self._fork(request)
        except ForkServerLost:
            self.stop()
            return self._fork(request)

    def _fork(self, request: ChildRequest) -> Child:
        with self._lock:
            control = self._running_server()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        messages, messages_in = os.pipe()
        output, output_in = os.pipe()
        child = Child(ours, messages, output)
        try:
            socket.send_fds(control, [json.dumps(request).encode()], [theirs.fileno(), messages_in, output_in])
        except OSError as error:
            child.close()
            raise ForkServerLost(f"The fork server does not answer: {error}.") from error
        finally:
            theirs.close()
            os.close(messages_in)
            os.close(output_in)
        child.pid = _started_pid(ours)
        if not child.pid:
            child.close()
            raise ForkServerLost("The fork server could not fork.")
        return child

    def stop(self) -> None:
        """End the server and every child."""
        with self._lock:
            if self._control is not None:
                self._control.close()
            if self._process is not None:
                _reap(self._process)
            self._process = self._control = None

    def _running_server(self) -> socket.socket:
        """The control socket of a server that is ready, started if need be."""
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        if self._control is not None:
            self._control.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [*self._command, str(theirs.fileno())]
            # A session of its own: a Ctrl-C at the terminal is for the worker to handle, not for the server.
            kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True, env=kept)
        ours.settimeout(_START_S)
        self._control = ours
        if (word := _first_word(ours)) != "ready":
            ours.close()
            _reap(self._process)
            code, self._process, self._control = self._process.returncode, None, None
            raise ForkServerLost(word or f"the fork server ended with status {code} before it was ready")
        ours.settimeout(None)
        return ours


def _first_word(control: socket.socket) -> str:
    """``ready``, or what the server could not do; empty when it died in silence, or took too long."""
    try:
        return control.recv(_LONGEST_WORD).decode()
    except OSError:
        return ""


def _started_pid(status: socket.socket) -> int:
    """The child's process id; 0 when it could not be forked."""
    status.settimeout(_FORK_S)
    try:
        word, _, pid = status.recv(64).partition(b" ")
        return int(pid) if word == b"started" else 0
    except OSError:
        return 0
    finally:
        status.settimeout(None)


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for the server, which exits when its control socket closes; kill one that hangs."""
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
