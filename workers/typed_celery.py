"""Celery's decorators with types: Celery has none, so mypy would treat every task and receiver as untyped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from celery import Celery
from celery.utils.dispatch import Signal

Receiver = TypeVar("Receiver", bound=Callable[..., None])


def receiver(signal: Signal) -> Callable[[Receiver], Receiver]:
    """Call the decorated function on ``signal``. Celery holds it by a weak reference, so it must belong to a module."""

    def connect(function: Receiver) -> Receiver:
        signal.connect(function)
        return function

    return connect


def task(app: Celery, name: str) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
    """Register the decorated function as the task ``name`` of one id, without a result."""

    def register(function: Callable[[str], None]) -> Callable[[str], None]:
        registered: Callable[[str], None] = app.task(name=name, ignore_result=True)(function)
        return registered

    return register
