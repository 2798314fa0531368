"""The fork server: a process that has torch imported and does nothing but fork children that need it.

Importing torch and the engine takes seconds, a fork of a process that has done so milliseconds; and the Celery process,
which has threads and sockets, must neither import torch nor be forked. ``multiprocessing``'s forkserver was weighed and
left: its children re-import ``__main__`` (here Celery's), a failing preload passes in silence, and nobody learns that a
child's group is dead.

    Celery process                        fork server                         child
    ForkServer.fork(request) --request--> fork() --------------------------> own session, dies with its server
        Child <------------ status socket: "started <pid>", later "exited <code>"
                             <---- socket: the listener of its seccomp filter
        Child <------------ status socket: "violation <system call>", and the child is killed; or
                                            "refused <system call>", and it goes on without
        Child <------------------------------------------------ messages pipe, output pipe (stdout and stderr)
        Child.kill() ------ status socket: "kill" --> SIGKILL to the child's whole group

The server reports an exit only when the child's group has been killed too, while the dead child still holds its pid, so
no signal can hit a stranger. When the Celery process dies, however it dies, the control socket closes: the server kills
all groups and leaves. When the server dies, the kernel kills its children (``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workers import seccomp

Request = dict[str, Any]

_MAX_REQUEST = 1 << 16
_PR_SET_PDEATHSIG = 1
_LONGEST_WORD = 1000
_START_S = 300  # torch from a cold disk
_FORK_S = 30
# All that the server, and so every child's memory and /proc/self/environ, keeps of the worker's environment.
_KEPT_ENVIRONMENT = (
    "PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "HOME", "TMPDIR",
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME",
)  # fmt: skip


class ForkServerLost(Exception):
    """The fork server is gone: it failed to start, or died. The next ``fork`` starts another."""


@dataclass
class Child:
    """A forked child as the supervisor holds it: three descriptors to poll, and its end."""

    status: socket.socket
    messages: int
    output: int
    pid: int = 0
    violation: str | None = None  # the system call that ended it
    refused: str | None = None  # one that failed, and may have been what it ended over
    _closed: bool = field(default=False)

    def kill(self) -> None:
        """SIGKILL the child and all it started. Its exit is reported as any other."""
        with contextlib.suppress(OSError):
            self.status.send(b"kill")

    def exit_code(self) -> int | None:
        """Read the end from a readable ``status``: the exit code, or minus the signal's number; ``None`` when it has
        not ended.

        Raises ``ForkServerLost`` if the server died first.
        """
        word, _, number = self.status.recv(64).decode().partition(" ")
        if word == "refused":
            self.refused = number
            return None
        if word == "violation":
            self.violation = number
            return self.exit_code()  # it is being killed
        if word != "exited":
            raise ForkServerLost("The fork server died while a child was running.")
        return int(number)

    def close(self) -> None:
        """Give the descriptors back, and make sure that nothing of the child stays alive."""
        if not self._closed:
            self._closed = True
            self.kill()
            self.status.close()
            os.close(self.messages)
            os.close(self.output)


class ForkServer:
    """The Celery process's side. Thread-safe. ``entry`` and ``preload`` are ``module:function`` names."""

    def __init__(self, entry: str = "workers.runner:main", preload: str = "workers.runner:preload") -> None:
        self._command = [sys.executable, "-m", "workers.forks", entry, preload]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Start the server and wait until it has everything imported. Raises ``ForkServerLost`` if it cannot."""
        with self._lock:
            self._started()

    def fork(self, request: Request) -> Child:
        """A child that runs ``entry(request, messages)``. A server found dead is replaced, once. Raises
        ``ForkServerLost``."""
        try:
            return self._fork(request)
        except ForkServerLost:
            self.stop()
            return self._fork(request)

    def _fork(self, request: Request) -> Child:
        with self._lock:
            control = self._started()
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

    def _started(self) -> socket.socket:
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
    """The server leaves by itself when its control socket closes; one that hangs does not get to stay."""
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ---- the server's side, a process of its own ----


@dataclass(frozen=True)
class _Listener:
    """Where the calls a child may not make arrive."""

    descriptor: int
    told: set[str] = field(default_factory=set)

    def close(self) -> None:
        os.close(self.descriptor)


class _Server:
    def __init__(self, control: socket.socket, entry: Callable[[Request, int], None]) -> None:
        self._control = control
        self._entry = entry
        self._children: dict[int, socket.socket] = {}
        self._fences: dict[int, socket.socket | _Listener] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._wake_in = socket.socketpair()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def serve(self) -> None:
        """Fork on request until the control socket closes, then leave nothing behind."""
        self._wake.setblocking(False)
        self._wake_in.setblocking(False)
        signal.set_wakeup_fd(self._wake_in.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        while self._step():
            pass
        for pid in self._children:
            _kill_group(pid)

    def _step(self) -> bool:
        for key, _ in self._selector.select():
            if key.fileobj is self._control:
                if not self._take_request():
                    return False
            elif key.fileobj is self._wake:
                with contextlib.suppress(BlockingIOError):
                    self._wake.recv(4096)
            elif isinstance(key.data, tuple):
                self._take_fence(key.data[0])
            else:
                self._take_command(key.data)
        self._report_exits()
        return True

    def _take_request(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, _MAX_REQUEST, 3)
        except ConnectionError:
            return False
        if not data:
            return False
        status = socket.socket(fileno=fds[0])
        server = os.getpid()
        fence, listener_to = socket.socketpair()
        try:
            pid = os.fork()
        except OSError:  # out of memory or processes: the closed socket tells the supervisor
            status.close()
            fence.close()
            return True
        else:
            if pid == 0:
                self._be_child(server, json.loads(data), [fds[1], fds[2], listener_to.fileno()])
        finally:
            listener_to.close()
            os.close(fds[1])
            os.close(fds[2])
        self._fences[pid] = fence
        self._selector.register(fence, selectors.EVENT_READ, (pid,))
        self._children[pid] = status
        self._selector.register(status, selectors.EVENT_READ, pid)
        with contextlib.suppress(OSError):
            status.send(f"started {pid}".encode())
        return True

    def _be_child(self, server: int, request: Request, descriptors: list[int]) -> None:
        code = 1
        try:
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != server:
                os._exit(1)
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            _keep_only(*descriptors)
            self._entry(request, 3)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)  # never back into the server's loop, never through its exit handlers

    def _take_fence(self, pid: int) -> None:
        """The child has sent its listener, or a call it may not make has arrived there."""
        source = self._fences.get(pid)
        if source is None:  # ended in this very round
            return
        if isinstance(source, _Listener):
            self._judge_call(pid, source)
            return
        self._forget_fence(pid)
        try:
            _, fds, _, _ = socket.recv_fds(source, 16, 1)
        except OSError:
            fds = []
        source.close()
        if fds:
            self._fences[pid] = _Listener(fds[0])
            self._selector.register(fds[0], selectors.EVENT_READ, (pid,))

    def _judge_call(self, pid: int, listener: _Listener) -> None:
        """The thread that made the call waits in it until it is dead, unless libraries try that call too."""
        call = seccomp.refused_call(listener.descriptor)
        if call in seccomp.PROBED:
            self._tell_once(pid, listener, call)
            return
        if call is not None and pid in self._children:
            with contextlib.suppress(OSError):
                self._children[pid].send(f"violation {call}".encode())
            _kill_group(pid)
        self._forget_fence(pid)
        listener.close()

    def _tell_once(self, pid: int, listener: _Listener, call: str) -> None:
        if call not in listener.told and pid in self._children:
            listener.told.add(call)
            with contextlib.suppress(OSError):
                self._children[pid].send(f"refused {call}".encode())

    def _forget_fence(self, pid: int) -> None:
        source = self._fences.pop(pid)
        self._selector.unregister(source.descriptor if isinstance(source, _Listener) else source)

    def _take_command(self, pid: int) -> None:
        """``kill``, or the supervisor has gone away: both end the child."""
        if pid not in self._children:
            return
        _kill_group(pid)
        try:
            gone = not self._children[pid].recv(64)
        except OSError:
            gone = True
        if gone:
            self._selector.unregister(self._children[pid])

    def _report_exits(self) -> None:
        for pid in list(self._children):
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                self._report_exit(pid)

    def _report_exit(self, pid: int) -> None:
        _kill_group(pid)  # what the child left behind; its pid is still its own, since it is not reaped yet
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if (fence := self._fences.get(pid)) is not None:
            self._forget_fence(pid)
            fence.close()
        status = self._children.pop(pid)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(status)
        with contextlib.suppress(OSError):
            status.send(f"exited {code}".encode())
        status.close()


def _keep_only(messages: int, output: int, listener_to: int) -> None:
    """Descriptors 0 to 4: nothing, output, output, messages, where the fence sends its listener. All others are
    closed: the server's sockets, and whatever its imports left open."""
    high = [messages, output, listener_to]
    while min(high) <= 4:
        high = [os.dup(descriptor) for descriptor in high]
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for target, source in ((1, high[1]), (2, high[1]), (3, high[0]), (4, high[2])):
        os.dup2(source, target)
    os.closerange(5, os.sysconf("SC_OPEN_MAX"))


def _kill_group(pid: int) -> None:
    """Only for a child that is not reaped yet. Before it has made its session it has no group, and no children."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def _main(entry: str, preload: str, control_fd: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control = socket.socket(fileno=int(control_fd))
    try:
        run = _function(entry)
        _function(preload)()
    except Exception as error:
        control.send(" ".join(f"{type(error).__name__}: {error}".split()).encode()[:_LONGEST_WORD])
        raise
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, every page of the server's objects
    control.send(b"ready")
    _Server(control, run).serve()


if __name__ == "__main__":
    _main(*sys.argv[1:])
