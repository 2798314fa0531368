"""Files to upload, and the short ways to what most scenarios start with."""

from __future__ import annotations

import io
import itertools
import json
import time
import zipfile
from typing import Any

import httpx2
import numpy as np
from redis import Redis

from fewbit.contract.resources import InputSignature
from tests.service.worker import Found, Worker

_serial = itertools.count()


def model_file(size: int = 200) -> bytes:
    """Looks like a zip, which is all the gateway looks at; no two are equal."""
    return b"PK\x03\x04" + f"{next(_serial):020}".encode() + b"m" * size


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    file = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(file, **arrays)
    return file.getvalue()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        for name, content in members:
            out.writestr(name, content)
    return file.getvalue()


def safetensors_file(header: object, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def digits(samples: int = 10, **more: Any) -> bytes:
    """Fits ``tests.service.worker.INPUTS``."""
    values = np.arange(samples * 4, dtype=np.float32).reshape(samples, 4) + next(_serial)
    return npz(**{"x": values, "labels": np.arange(samples) % 3, **more})


def post(http: httpx2.Client, path: str, content: bytes, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.post(path, content=content, headers={"Content-Type": "application/octet-stream"} | named)


def ready_model(http: httpx2.Client, worker: Worker, *inputs: InputSignature) -> str:
    """The id of an inspected model."""
    model: str = post(http, "/models", model_file()).json()["id"]
    worker.inspect(model, Found(inputs=inputs) if inputs else Found())
    return model


def dataset(http: httpx2.Client, content: bytes) -> str:
    answer = post(http, "/datasets", content)
    assert answer.status_code == 201, answer.text
    created: str = answer.json()["id"]
    return created


def job(http: httpx2.Client, worker: Worker, **spec: Any) -> str:
    """The id of a queued job."""
    answer = http.post("/jobs", json={"model": ready_model(http, worker)} | spec)
    assert answer.status_code == 202, answer.text
    created: str = answer.json()["id"]
    return created


def codes(answer: httpx2.Response) -> set[tuple[str, str]]:
    """(pointer, code) of every field error."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    return {(error["pointer"], error["code"]) for error in answer.json().get("errors", [])}


def message(answer: httpx2.Response, code: str) -> str:
    found: str = next(error["message"] for error in answer.json()["errors"] if error["code"] == code)
    return found


def wait_for_a_key(redis: Redis) -> None:
    """Until a request with an Idempotency-Key has begun."""
    deadline = time.monotonic() + 20
    while not redis.keys("fewbit:idempotency:*"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
