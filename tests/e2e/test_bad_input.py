"""Bad input gets its problem, and nothing is lost: every kind, against the running service."""

import io
import pickle
import socket
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch

from fewbit.client import Client
from local.stack import Stack
from tests.e2e.conftest import Upload
from tests.hostile.scripts import SCRIPTS
from tests.workers import uploads

BYTES = {"Content-Type": "application/octet-stream"}


class RunsCode:
    """Unpickling it would make the canary file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def outcome(http: httpx2.Client, content: bytes) -> tuple[str, str]:
    """The slug and the words an upload ends with, at once or after its inspection."""
    answer = http.post("/models", content=content, headers=BYTES)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.json()["type"].rsplit("/", 1)[-1], answer.json()["detail"]
    model_id = answer.json()["id"]
    deadline = time.monotonic() + 60
    while (model := http.get(f"/models/{model_id}").json())["status"] == "inspecting":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert model["status"] == "rejected"
    refused = http.post("/jobs", json={"model": model_id})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/model"
    return model["error"]["type"].rsplit("/", 1)[-1], model["error"]["detail"]


def blobs(stack: Stack) -> set[str]:
    return {str(path) for path in (stack.folder / "blobs").rglob("*") if path.is_file()}


def test_what_is_no_zip_is_refused_at_the_door_and_not_kept(http: httpx2.Client, stack: Stack) -> None:
    before = blobs(stack)
    slug, detail = outcome(http, b"hello, this is no model")
    assert slug == "invalid-model"
    assert "torch.export" in detail or ".pt2" in detail
    assert blobs(stack) == before


def test_an_empty_upload_is_refused(http: httpx2.Client) -> None:
    assert outcome(http, b"")[0] == "invalid-model"


def test_a_truncated_zip(http: httpx2.Client, mlp: Upload) -> None:
    content = mlp.path.read_bytes()
    assert outcome(http, content[: len(content) // 2])[0] == "invalid-model"


def test_a_zip_bomb(http: httpx2.Client, mlp: Upload, tmp_path: Path) -> None:
    bomb = uploads.rewritten(mlp.path, tmp_path / "bomb.pt2", lambda _, data: data)
    with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/data/weights/bomb", bytes(300 << 20))
    assert bomb.stat().st_size < 3 << 20
    slug, detail = outcome(http, bomb.read_bytes())
    assert slug in ("invalid-model", "unsafe-model")
    assert "bomb" in detail


def test_a_pt2_of_another_torch(http: httpx2.Client, mlp: Upload, tmp_path: Path) -> None:
    other = uploads.with_program(
        mlp.path, tmp_path / "other.pt2", lambda program: program["schema_version"].update(major=99)
    )
    slug, detail = outcome(http, other.read_bytes())
    assert slug == "invalid-model"
    assert "schema 99" in detail


def test_a_pickle_instead_of_a_pt2_is_told_how_to_export(http: httpx2.Client) -> None:
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(4, 4).state_dict(), buffer)
    slug, detail = outcome(http, buffer.getvalue())
    assert slug == "invalid-model"
    assert "torch.export.save" in detail


@pytest.mark.parametrize("entry", ["data/sample_inputs/model.pt", "data/constants/evil.pt", "extra/evil"])
def test_a_hostile_pickle_inside_a_pt2_is_named_and_never_runs(
    entry: str, http: httpx2.Client, mlp: Upload, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    hostile = uploads.with_entry(mlp.path, tmp_path / "hostile.pt2", entry, pickle.dumps(RunsCode(canary)))
    slug, detail = outcome(http, hostile.read_bytes())
    assert slug == "unsafe-model"
    assert "pathlib" in detail
    assert not canary.exists()


def test_a_body_that_stops_half_way_leaves_nothing(stack: Stack, http: httpx2.Client, mlp: Upload) -> None:
    content = mlp.path.read_bytes() + b"unique to this test"
    before = blobs(stack)
    known = len(http.get("/models", params={"limit": 100}).json()["models"])
    with socket.create_connection(("127.0.0.1", stack.port)) as half:
        head = (
            f"POST /models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.key}\r\n"
            f"Content-Type: application/octet-stream\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        half.sendall(head.encode() + content[: len(content) // 2])
        time.sleep(0.3)
    time.sleep(0.5)
    assert blobs(stack) == before
    assert len(http.get("/models", params={"limit": 100}).json()["models"]) == known


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


X = np.zeros((10, 8, 8), np.float32)


def with_nan() -> np.ndarray:
    spoilt = X.copy()
    spoilt[3, 2, 1] = np.nan
    return spoilt


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"x": X, "labels": np.zeros(9, int)}, "unequal-length"),
        ({"x": with_nan(), "labels": np.zeros(10, int)}, "not-finite"),
        ({"x": np.array([{}] * 10, dtype=object)}, "object-array"),
    ],
)
def test_a_dataset_that_cannot_be_right_is_refused_at_the_door(
    arrays: dict[str, Any], code: str, http: httpx2.Client
) -> None:
    answer = http.post("/datasets", content=npz(**arrays), headers=BYTES)
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-dataset"
    assert code in [error["code"] for error in answer.json()["errors"]]


@pytest.mark.parametrize(
    ("arrays", "code", "told"),
    [
        ({"x": X.astype(np.float64)}, "dtype-mismatch", "float32"),
        ({"x": np.zeros((10, 8, 9), np.float32)}, "shape-mismatch", "8"),
        ({"x": X, "labels": np.zeros(10, np.float32)}, "dtype-mismatch", "int64"),
        ({"y": X, "z": X}, "missing-input", "x"),
    ],
)
def test_a_dataset_that_does_not_fit_the_model_is_422_now_not_a_failed_job_later(
    arrays: dict[str, Any], code: str, told: str, http: httpx2.Client, client: Client, mlp: Upload
) -> None:
    model = client.upload_model(mlp.path)
    dataset = http.post("/datasets", content=npz(**arrays), headers=BYTES).json()
    answer = http.post("/jobs", json={"model": model.id, "evaluation": {"dataset": dataset["id"]}})
    assert answer.status_code == 422
    assert code in [error["code"] for error in answer.json()["errors"]]
    assert told in " ".join(error["message"] for error in answer.json()["errors"])


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        ({"wieghts": {}}, "/wieghts"),
        ({"weights": {"dtpye": "int8"}}, "/weights/dtpye"),
        ({"layers": [{"match": "hiden*", "quantize": False}]}, "/layers/0/match"),
        ({"method": "static"}, "/calibration"),
        ({"evaluation": {"dataset": "dst_nothing"}}, "/evaluation/dataset"),
        ({"model": "mdl_nothing"}, "/model"),
    ],
)
def test_a_spec_that_cannot_work_is_422_and_says_where(
    spec: dict[str, Any], pointer: str, http: httpx2.Client, client: Client, mlp: Upload
) -> None:
    answer = http.post("/jobs", json={"model": client.upload_model(mlp.path).id, **spec})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]
    assert all(error["message"] for error in answer.json()["errors"])


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic Zm9v"}])
def test_no_key_no_answer(headers: dict[str, str], stack: Stack) -> None:
    for method, path in (("GET", "/models"), ("POST", "/jobs"), ("GET", "/jobs/job_x/report")):
        answer = httpx2.request(method, f"{stack.url}{path}", headers=headers, trust_env=False)
        assert answer.status_code == 401
        assert answer.json()["type"] == "/problems/unauthorized"


def test_after_all_of_that_the_service_still_works(client: Client, mlp: Upload) -> None:
    job = client.create_job({"model": client.upload_model(mlp.path).id, "artifacts": ["torchscript"]})
    assert client.wait(job).status == "succeeded"


def test_torchscript_that_reads_passwd_is_refused_and_the_next_job_succeeds(
    http: httpx2.Client, client: Client, mlp: Upload, tmp_path: Path
) -> None:
    torch.jit.save(SCRIPTS["read"](tmp_path / "canary"), tmp_path / "reads.pt")
    slug, detail = outcome(http, (tmp_path / "reads.pt").read_bytes())
    assert slug == "unsafe-model"
    assert "from_file" in detail
    job = client.wait(client.create_job({"model": client.upload_model(mlp.path).id}))
    assert job.status == "succeeded"


def test_every_worker_says_how_it_is_fenced(http: httpx2.Client) -> None:
    workers = http.get("/capabilities").json()["workers"]
    assert workers
    for worker in workers:
        assert worker["sandbox"]["seccomp"] is True
        assert worker["sandbox"]["landlock"] > 0
