"""Logs of the gateway: structlog's lines, with tracebacks that hold no values. Where Rich is installed structlog shows
every local variable of every frame otherwise, passwords and what callers sent among them."""

from __future__ import annotations

import sys

import structlog


def configure() -> None:
    """Before the first line is logged."""
    plain = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])
