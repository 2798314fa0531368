"""The gateway as a user meets it: a uvicorn process of its own on a free port, on real Redis.

Every answer to every test is looked through for what nobody out there is to know: paths, stack traces, names of hosts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from local.stack import ROOT, free_port

KEY = "a-key-for-tests"
A_HOST = "a-host-of-ours"
"""Where workers run, in tests."""
TRACES = ("Traceback (most recent call last)", 'File "', 'File \\"', "site-packages", ".py:")


class Gateway:
    """``http`` carries the key."""

    def __init__(self, folder: Path, redis_url: str, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.blobs = folder / "blobs"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {"REDIS_URL": redis_url, "FEWBIT_BLOBS_URL": str(self.blobs), "FEWBIT_API_KEYS": f"another,{KEY}"}
        self.env |= dict(env or {})
        self.http = self.client(KEY)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self.process.terminate()
        self.process.wait(15)

    def client(self, key: str | None = None) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        hooks = {"response": [self._looked_through]}
        return httpx2.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60, event_hooks=hooks)

    def tells_nothing(self, answer: str) -> None:
        """Of where the gateway runs, and how."""
        places = (str(ROOT), sys.prefix, str(self.folder), self.env["REDIS_URL"].partition("//")[2])
        found = [secret for secret in (*places, *TRACES, A_HOST) if secret in answer]
        assert not found, (found, answer)

    def _looked_through(self, answer: httpx2.Response) -> None:
        self.tells_nothing(str(answer.headers))
        if "content-length" in answer.headers and "octet-stream" not in answer.headers.get("content-type", ""):
            self.tells_nothing(answer.read().decode(errors="replace"))

    def start(self) -> None:
        command = [sys.executable, "-m", "service", "--port", str(self.port)]
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **self.env}, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + 30
        while not self._alive():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def blob_files(self) -> list[str]:
        """Every file under the store's folder."""
        return sorted(str(path.relative_to(self.blobs)) for path in self.blobs.rglob("*") if path.is_file())

    def _alive(self) -> bool:
        with suppress(httpx2.TransportError):
            return self.http.get("/health/live").status_code == 200
        return False
