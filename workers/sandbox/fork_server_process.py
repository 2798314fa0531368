"""The fork server itself: ``python -m workers.sandbox.fork_server_process <entry> <preload> <control socket>``.

One thread and one selector. It preloads the engine, then forks a child for every request that arrives on the control
socket. ``fork_server.py`` is the worker's side, and describes the protocol.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from store.parent_death import die_with_parent
from workers.sandbox import seccomp
from workers.sandbox.fork_server import ChildRequest

_MAX_REQUEST = 1 << 16
_LONGEST_WORD = 1000  # bytes of an error that keeps the server from becoming ready


@dataclass(frozen=True)
class _Listener:
    """Where the system calls arrive that a child may not make."""

    descriptor: int
    reported: set[str] = field(default_factory=set)

    def close(self) -> None:
        os.close(self.descriptor)


class _Server:
    """``_children`` holds the status sockets by pid; ``_fences`` the seccomp listeners, or the sockets through which
    these will arrive."""

    def __init__(self, control: socket.socket, entry: Callable[[ChildRequest, int], None]) -> None:
        self._control = control
        self._entry = entry
        self._children: dict[int, socket.socket] = {}
        self._fences: dict[int, socket.socket | _Listener] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._wake_in = socket.socketpair()

    def serve(self) -> None:
        """Fork on request until the control socket closes, then kill every child."""
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

    def _be_child(self, server: int, request: ChildRequest, descriptors: list[int]) -> None:
        code = 1
        try:
            die_with_parent(signal.SIGKILL)
            if os.getppid() != server:  # it died before the call
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
            os._exit(code)  # neither the server's loop nor its exit handlers may run in the child

    def _take_fence(self, pid: int) -> None:
        """Receive the child's listener, or handle a call that has arrived at it."""
        source = self._fences.get(pid)
        if source is None:  # the child's exit was reported in this same round
            return
        if isinstance(source, _Listener):
            self._handle_call(pid, source)
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

    def _handle_call(self, pid: int, listener: _Listener) -> None:
        """Kill the child, whose thread waits inside the call; only calls that libraries try too are answered."""
        call = seccomp.refused_call(listener.descriptor)
        if call in seccomp.PROBED:
            self._report_refusal_once(pid, listener, call)
            return
        if call is not None and pid in self._children:
            with contextlib.suppress(OSError):
                self._children[pid].send(f"violation {call}".encode())
            _kill_group(pid)
        self._forget_fence(pid)
        listener.close()

    def _report_refusal_once(self, pid: int, listener: _Listener, call: str) -> None:
        if call not in listener.reported and pid in self._children:
            listener.reported.add(call)
            with contextlib.suppress(OSError):
                self._children[pid].send(f"refused {call}".encode())

    def _forget_fence(self, pid: int) -> None:
        source = self._fences.pop(pid)
        self._selector.unregister(source.descriptor if isinstance(source, _Listener) else source)

    def _take_command(self, pid: int) -> None:
        """``kill``, or the worker has closed the socket: either ends the child."""
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
        _kill_group(pid)  # what the child left behind; nobody else can have its pid before it is reaped
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
    """Descriptors 0 to 4 become: ``/dev/null``, output, output, messages, the socket for the fence's listener. All
    others are closed: the server's sockets, and whatever its imports left open."""
    high = [messages, output, listener_to]
    while min(high) <= 4:
        high = [os.dup(descriptor) for descriptor in high]
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for target, source in ((1, high[1]), (2, high[1]), (3, high[0]), (4, high[2])):
        os.dup2(source, target)
    os.closerange(5, os.sysconf("SC_OPEN_MAX"))


def _kill_group(pid: int) -> None:
    """Only for a child that is not reaped yet. Before its ``setsid`` it has no group of its own, and no children."""
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
