"""Fuzzing of every parser that reads a stranger's bytes before the fence does its part.

One file a parser: it ends in ``TARGET = Target(...)``, and that is all there is to adding one. Inputs are valid files
with a few bytes, or a part of their structure, changed by hypothesis: random bytes never get past a magic number.

    make test                            a minute for all of them together (tests/fuzz/test_fuzz.py)
    python -m tests.fuzz --minutes 30    longer; --only archive for one of them
"""

from __future__ import annotations

import importlib
import pkgutil
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

_BATCH = 100  # examples between two looks at the clock
_HUNG_S = 10.0


@dataclass(frozen=True)
class Target:
    """One parser. ``parse`` gets what ``inputs`` makes; it returns anything, or raises one of ``refusals``. Any other
    exception, and more than ten seconds, is a failure."""

    name: str
    inputs: SearchStrategy[Any]
    parse: Callable[[Any], object]
    refusals: tuple[type[Exception], ...]


class Hung(Exception):
    """A parser took too long over one input."""


def targets() -> list[Target]:
    """Every ``TARGET`` of this folder's files, by name."""
    modules = [name for _, name, _ in pkgutil.iter_modules(__path__) if not name.startswith(("test_", "__"))]
    loaded = [importlib.import_module(f"{__name__}.{name}") for name in modules]
    return sorted((module.TARGET for module in loaded if hasattr(module, "TARGET")), key=lambda target: target.name)


def fuzz(target: Target, seconds: float) -> int:
    """Feed ``target`` for so long; how many inputs it took. Raises what the parser raised, with the smallest input
    that shows it in a note."""
    until, fed = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        fed += _batch(target)
    return fed


def _batch(target: Target) -> int:
    fed = 0

    @seed(random.randrange(1 << 62))
    @settings(max_examples=_BATCH, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
              suppress_health_check=list(HealthCheck), print_blob=False)  # fmt: skip
    @given(target.inputs)
    def feed(value: Any) -> None:
        nonlocal fed
        fed += 1
        with _in_time():
            _refused_or_read(target, value)

    feed()
    return fed


def _refused_or_read(target: Target, value: Any) -> None:
    try:
        target.parse(value)
    except target.refusals:
        return


@contextmanager
def _in_time() -> Iterator[None]:
    def hung(*_: object) -> None:
        raise Hung(f"more than {_HUNG_S:g} s over one input")

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, _HUNG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def chosen(names: Sequence[str]) -> list[Target]:
    """The targets of these names; all, when none is named. Raises ``SystemExit`` for one that is not there."""
    there = {target.name: target for target in targets()}
    unknown = set(names) - set(there)
    if unknown:
        raise SystemExit(f"No such parser: {', '.join(sorted(unknown))}. There are {', '.join(there)}.")
    return [there[name] for name in names or there]
