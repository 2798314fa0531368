"""The page of a report of 300 layers, every field filled: its size, and when it is ready to be used in Chromium."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser

from benchmarks.result import Result
from fewbit.rendering.html.report_page import report_page
from local.browser import browser
from tests.fewbit.example import full_report

LAYERS = 300
LIMIT_BYTES = 3_000_000
LIMIT_MS = 1000.0
ROUNDS = 5
READY = "Number(document.documentElement.dataset.ready)"  # the script's last act, in ms since the navigation began


def run() -> Iterator[Result]:
    report = full_report(LAYERS)
    began = time.perf_counter()
    html = report_page(report)
    spent = time.perf_counter() - began
    size = len(html.encode())
    yield Result(f"HTML of {LAYERS} layers", f"{size / 1e6:.2f} MB", "limit", "3 MB", size / LIMIT_BYTES, at_most=1)
    with tempfile.TemporaryDirectory(prefix="fewbit-bench-") as name, browser() as chrome:
        path = Path(name) / "report.html"
        path.write_text(html, encoding="utf-8")
        ready = statistics.median(_ready(chrome, path) for _ in range(ROUNDS))
    yield Result("interactive after", f"{ready:.0f} ms", "limit", f"{LIMIT_MS:.0f} ms", ready / LIMIT_MS, at_most=1)
    yield Result("drawn by the gateway in", f"{1000 * spent:.0f} ms", "", "")


def _ready(chrome: Browser, path: Path) -> float:
    """A fresh profile each time, so that nothing is cached."""
    context = chrome.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(path.as_uri())
    ready = float(page.evaluate(READY))
    context.close()
    return ready
