"""GET /jobs/{id}, against a bare FastAPI route that answers the same JSON."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from benchmarks.models import mlp
from benchmarks.result import Result
from local.stack import ROOT, Stack, free_port

CONNECTIONS = 16
SECONDS = 3.0
ROUNDS = 3

BARE = """
import json, pathlib, sys
from fastapi import FastAPI
app = FastAPI()
document = json.loads(pathlib.Path(sys.argv[1]).read_text())

@app.get("/jobs/{job_id}")
async def job(job_id: str):
    return document

import uvicorn
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
"""


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory(prefix="fewbit-bench-") as name:
        folder = Path(name)
        with Stack(folder / "stack", env={"FEWBIT_REQUESTS_PER_MINUTE": "60000000"}) as stack, stack.client() as client:
            job = client.wait(client.create_job({"model": client.upload_model(mlp(folder / "mlp.pt2")).id}))
            key = {"Authorization": f"Bearer {stack.key}"}
            document = httpx2.get(f"{stack.url}/jobs/{job.id}", headers=key, trust_env=False).json()
            (folder / "job.json").write_text(json.dumps(document))
            with _bare(folder / "job.json") as port:
                rates = [
                    (_rate(stack.port, f"/jobs/{job.id}", stack.key), _rate(port, f"/jobs/{job.id}", ""))
                    for _ in range(ROUNDS)
                ]
    ours, peers = (statistics.median(pair) for pair in zip(*rates, strict=True))
    yield Result("GET /jobs/{id}", f"{ours:.0f}/s", "bare FastAPI route", f"{peers:.0f}/s", ours / peers, at_least=0.5)


@contextmanager
def _bare(document: Path) -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", BARE, str(document), str(port)], cwd=ROOT)
    try:
        for _ in range(200):
            try:
                httpx2.get(f"http://127.0.0.1:{port}/jobs/x", trust_env=False)
                break
            except httpx2.TransportError:
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def _rate(port: int, path: str, key: str) -> float:
    """Requests a second over keep-alive connections, one request in flight on each."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    return asyncio.run(_load(port, request))


async def _load(port: int, request: bytes) -> float:
    deadline = time.perf_counter() + SECONDS
    counts = await asyncio.gather(*(_requests(port, request, deadline) for _ in range(CONNECTIONS)))
    return sum(counts) / SECONDS


async def _requests(port: int, request: bytes, deadline: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    count = 0
    while time.perf_counter() < deadline:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        count += 1
    writer.close()
    return count
