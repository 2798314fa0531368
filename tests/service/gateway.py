"""The gateway as a user meets it: a uvicorn process of its own on a free port, on real Redis."""

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
        return httpx2.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60)

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
        return sorted(str(each.relative_to(self.blobs)) for each in self.blobs.rglob("*") if each.is_file())

    def _alive(self) -> bool:
        with suppress(httpx2.TransportError):
            return self.http.get("/health/live").status_code == 200
        return False
