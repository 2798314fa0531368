"""Runs one child and watches it to its end. Nothing a child does can hang or flood the watcher.

    fork -> read its pipes, check its limits, wait for its exit -> read what is left -> how it ended

The child is dead when ``run_child`` returns or raises: its folder may be wiped.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from workers.sandbox.child_messages import ChildMessages, OnMessage
from workers.sandbox.fork_server import Child, ChildRequest, ForkServer, ForkServerLost
from workers.sandbox.limits import Limits
from workers.sandbox.outcome import ChildOutcome
from workers.sandbox.usage import UsageCheck

Check = Callable[[], None]
"""Called ten times a second; what it raises ends the child."""

_TICK_S = 0.1  # a cancel or a shutdown is noticed after this time
_CHUNK = 1 << 16
_DRAIN_S = 1.0
_KILL_S = 5.0


class DeadlinePassed(Exception):
    """The child ran past its deadline and was killed."""


def run_child(
    forks: ForkServer,
    request: ChildRequest,
    deadline: float,
    check: Check = lambda: None,
    on_message: OnMessage = lambda *_: None,
) -> ChildOutcome:
    """Fork a child for ``request`` and watch it until ``deadline``, on ``time.monotonic``'s clock.

    Raises ``DeadlinePassed``, ``LimitExceeded`` (for a request with ``limits``), ``ForkServerLost``, and what ``check``
    raises.
    """
    with closing(forks.fork(request)) as child:
        return watch(child, deadline, _with_usage_check(check, request, child), on_message)


def _with_usage_check(check: Check, request: ChildRequest, child: Child) -> Check:
    if "limits" not in request:
        return check
    usage = UsageCheck(child.pid, Path(request["folder"]), Limits(**request["limits"]))

    def check_both() -> None:
        check()
        usage.check()

    return check_both


def watch(
    child: Child, deadline: float, check: Check = lambda: None, on_message: OnMessage = lambda *_: None
) -> ChildOutcome:
    """Watch ``child`` to its end; ``run_child`` says what is raised."""
    messages = ChildMessages(on_message)
    with selectors.DefaultSelector() as selector:
        _register(selector, child, messages)
        try:
            exit_code = _wait_for_exit(selector, child, deadline, check)
        except BaseException:
            _kill_and_wait(selector, child)
            raise
        _drain(selector, child)
    return ChildOutcome(
        exit_code, messages.result, messages.problem, messages.output_tail, child.forbidden_call, child.refused_call
    )


def _register(selector: selectors.BaseSelector, child: Child, messages: ChildMessages) -> None:
    """The two pipes, each with the function that takes its bytes, and the status socket."""
    pipes = ((child.messages, messages.add_message_bytes), (child.output, messages.add_output_bytes))
    for descriptor, take_bytes in pipes:
        os.set_blocking(descriptor, False)
        selector.register(descriptor, selectors.EVENT_READ, take_bytes)
    selector.register(child.status, selectors.EVENT_READ)


def _wait_for_exit(selector: selectors.BaseSelector, child: Child, deadline: float, check: Check) -> int:
    while True:
        check()
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlinePassed
        for key, _ in selector.select(min(left, _TICK_S)):
            if key.fileobj is not child.status:
                _read_chunk(selector, key)
            elif (exit_code := child.exit_code()) is not None:
                return exit_code


def _read_chunk(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """One chunk at a time, so that a child that floods one pipe does not starve the rest."""
    try:
        chunk = os.read(key.fd, _CHUNK)
    except BlockingIOError:
        return
    if chunk:
        key.data(chunk)
    else:
        selector.unregister(key.fileobj)  # the child closed this pipe; it may run on


def _drain(selector: selectors.BaseSelector, child: Child) -> None:
    """Read what the dead child had written and nobody had read yet."""
    selector.unregister(child.status)
    give_up = time.monotonic() + _DRAIN_S
    while selector.get_map() and time.monotonic() < give_up:
        for key, _ in selector.select(0.05):
            _read_chunk(selector, key)


def _kill_and_wait(selector: selectors.BaseSelector, child: Child) -> None:
    child.kill()
    give_up = time.monotonic() + _KILL_S
    while time.monotonic() < give_up:
        for key, _ in selector.select(0.05):
            if key.fileobj is not child.status:
                _read_chunk(selector, key)
            elif _is_dead(child):
                return


def _is_dead(child: Child) -> bool:
    try:
        return child.exit_code() is not None
    except ForkServerLost:  # the kernel killed the child with its server
        return True
