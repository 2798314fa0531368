"""The machine's own Chromium, for tests and benchmarks of pages; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class NoBrowser(RuntimeError):
    """No Chromium was found."""

    def __init__(self) -> None:
        super().__init__(
            f"No Chromium found: neither FEWBIT_CHROMIUM nor any of {', '.join(NAMES)} on PATH. "
            "Install one (Debian, Ubuntu: `apt-get install chromium`), or set FEWBIT_CHROMIUM to its path."
        )


def chromium() -> str:
    """The path of the browser. Raises ``NoBrowser``."""
    found = os.environ.get("FEWBIT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise NoBrowser
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """A fresh browser that keeps nothing. Chromium's sandbox does not work for root."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=[*QUIET, *sandbox])
        try:
            yield started
        finally:
            started.close()
