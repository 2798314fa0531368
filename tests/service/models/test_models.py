"""Models: uploaded raw or as a form, known by their bytes, judged by an inspection."""

from __future__ import annotations

import base64
import hashlib
import socket
import time
from typing import Any

import httpx2
import numpy as np
import pytest
from redis import Redis

from fewbit.contract.resources import InputSignature, Model, ModelFormat
from tests.service.gateway import KEY, Gateway
from tests.service.uploads import codes, dataset, job, message, model_file, npz, post
from tests.service.worker import Found, Worker


def test_an_upload_becomes_a_model_that_waits_for_its_inspection(http: httpx2.Client, redis: Redis) -> None:
    content = model_file()
    answer = http.post("/models?name=net.pt2", content=content)
    model = Model.model_validate(answer.json())
    assert (answer.status_code, model.status, model.name) == (201, "inspecting", "net.pt2")
    assert (model.size, model.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert answer.headers["Location"] == f"/models/{model.id}"
    assert http.get(answer.headers["Location"]).json() == answer.json()
    assert redis.llen("inspect") == 1  # the message to the inspector


def test_the_same_bytes_are_the_same_model(http: httpx2.Client, redis: Redis) -> None:
    content = model_file()
    first, second = post(http, "/models", content), post(http, "/models?name=other", content)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    assert redis.llen("inspect") == 1


def test_known_bytes_that_are_inspected_again_are_known_still(
    http: httpx2.Client, worker: Worker, redis: Redis
) -> None:
    content = model_file()
    first = post(http, "/models", content)
    worker.reject(first.json()["id"], "out-of-memory", "It needed 9 GiB.")
    again = post(http, "/models", content)
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (200, first.json()["id"], "inspecting")
    assert redis.llen("inspect") == 2


def test_a_form_is_an_upload_too(http: httpx2.Client) -> None:
    content = model_file(300_000)
    answer = http.post("/models", files={"file": ("dir/net.pt2", content)}, data={"note": "passed over"})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["name"], answer.json()["sha256"]) == ("net.pt2", hashlib.sha256(content).hexdigest())


def test_what_the_inspection_found_is_shown(http: httpx2.Client, worker: Worker) -> None:
    ready, rejected = (post(http, "/models", model_file()).json()["id"] for _ in range(2))
    worker.inspect(ready)
    worker.reject(rejected, "unsafe-model", "It would run os.system.")
    shown = Model.model_validate(http.get(f"/models/{ready}").json())
    assert (shown.status, shown.format, [given.name for given in shown.inputs]) == ("ready", "pt2", ["x"])
    assert shown.layers[0].name == "encoder.query"
    error = http.get(f"/models/{rejected}").json()["error"]
    assert (error["type"], error["detail"]) == ("/problems/unsafe-model", "It would run os.system.")


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04...", b"\x1f\x8b\x08...", b"config.json".ljust(257, b"\0") + b"ustar\x0000", b"\x80\x02..."],
)
def test_archives_and_pickles_of_every_kind_are_left_to_the_inspection(http: httpx2.Client, content: bytes) -> None:
    assert post(http, "/models", content).status_code == 201


@pytest.mark.parametrize("content", [b"", b"PK", b"hello, world", b"\x80\x09pickle", b"\x1f\x8c", b"ustar" * 60])
def test_what_cannot_be_a_model_is_refused_at_once(gateway: Gateway, content: bytes) -> None:
    before = gateway.blob_files()
    answer = post(gateway.http, "/models", content)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-model")
    assert gateway.blob_files() == before


def test_a_large_refused_upload_still_gets_its_answer(http: httpx2.Client) -> None:
    answer = post(http, "/models", b"not a model" * 500_000)
    assert answer.json()["type"] == "/problems/invalid-model"
    assert http.get("/models").status_code == 200  # on the same connection


def repr_digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def test_the_announced_digest_is_verified(gateway: Gateway) -> None:
    content, before = model_file(), gateway.blob_files()
    wrong = post(gateway.http, "/models", content, Repr_Digest=repr_digest(b"other"))
    assert (wrong.status_code, wrong.json()["type"]) == (422, "/problems/digest-mismatch")
    assert gateway.blob_files() == before
    assert post(gateway.http, "/models", content, Repr_Digest=repr_digest(content)).status_code == 201


def test_a_digest_that_is_none_is_malformed(http: httpx2.Client) -> None:
    answer = post(http, "/models", model_file(), Repr_Digest="sha-256=:AAAA:")
    assert answer.json()["type"] == "/problems/malformed-request"


@pytest.mark.parametrize("chunked", [False, True])
def test_too_much_is_refused(gateway: Gateway, chunked: bool) -> None:
    content, before = model_file(9 * 2**20), gateway.blob_files()
    pieces = (content[start : start + 2**16] for start in range(0, len(content), 2**16))
    answer = gateway.http.post("/models", content=pieces if chunked else content)
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/payload-too-large")
    assert gateway.blob_files() == before


@pytest.mark.parametrize("form", [False, True])
def test_an_upload_that_stops_half_way_leaves_nothing(gateway: Gateway, redis: Redis, form: bool) -> None:
    before = gateway.blob_files(), gateway.http.get("/models").json()
    content = model_file(7 * 2**20)
    if form:
        start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\n'
        content = start + content + b"\r\n--b--\r\n"
    kind = "multipart/form-data; boundary=b" if form else "application/octet-stream"
    with socket.create_connection(("127.0.0.1", gateway.port)) as line:
        head = f"POST /models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: {kind}\r\n"
        line.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[: 5 * 2**20])
        time.sleep(0.3)  # so that the first pieces are on their way to the disk
        assert [path for path in gateway.blob_files() if path not in before[0]], "it had not begun"
    deadline = time.monotonic() + 10
    while gateway.blob_files() != before[0] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (gateway.blob_files(), gateway.http.get("/models").json()) == before
    assert not redis.keys("fewbit:blob:*")


def test_a_form_that_ends_before_its_boundary_is_interrupted(http: httpx2.Client) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\n' + model_file()
    answer = http.post("/models", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/upload-interrupted")


def test_a_form_without_a_file_is_malformed(http: httpx2.Client) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n--b--\r\n'
    answer = http.post("/models", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed-request")


def test_a_deleted_model_is_gone_with_its_bytes(gateway: Gateway) -> None:
    before = gateway.blob_files()
    model = post(gateway.http, "/models", model_file()).json()["id"]
    assert gateway.http.delete(f"/models/{model}").status_code == 204
    assert gateway.http.get(f"/models/{model}").status_code == 404
    assert gateway.http.delete(f"/models/{model}").status_code == 404
    assert gateway.blob_files() == before


def test_a_model_that_a_job_needs_stays(http: httpx2.Client, worker: Worker) -> None:
    queued = job(http, worker)
    model = http.get(f"/jobs/{queued}").json()["spec"]["model"]
    refused = http.delete(f"/models/{model}")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/in-use")
    http.post(f"/jobs/{queued}/cancel")
    assert http.delete(f"/models/{model}").status_code == 204


def test_pages_follow_each_other(http: httpx2.Client) -> None:
    made = [post(http, "/models", model_file()).json()["id"] for _ in range(5)]
    first = http.get("/models?limit=2")
    second = http.get(first.links["next"]["url"])
    third = http.get(f"/models?limit=2&cursor={second.json()['next']}")
    assert [model["id"] for page in (first, second, third) for model in page.json()["models"]] == made[::-1]
    assert (third.json()["next"], third.links) == (None, {})


@pytest.mark.parametrize("cursor", ["x", "%ff", "am9iXzEyMw", "****"])
def test_a_cursor_from_elsewhere_is_refused(http: httpx2.Client, cursor: str) -> None:
    assert codes(http.get(f"/models?cursor={cursor}")) == {("/query/cursor", "unknown-cursor")}


# ---- formats that do not say what their inputs look like ----


def uploaded(http: httpx2.Client, worker: Worker, found: Found) -> str:
    model: str = post(http, "/models", model_file()).json()["id"]
    worker.inspect(model, found)
    return model


@pytest.mark.parametrize("format", ["module", "torchscript"])
def test_a_job_without_data_is_told_what_to_send(http: httpx2.Client, worker: Worker, format: ModelFormat) -> None:
    model = uploaded(http, worker, Found(inputs=(), format=format))
    answer = http.post("/jobs", json={"model": model})
    assert (answer.status_code, codes(answer)) == (422, {("/evaluation", "example-inputs-needed")})
    for words in (format, "numpy.savez('evaluation.npz', x=...)", "POST /datasets", '"evaluation": {"dataset"'):
        assert words in message(answer, "example-inputs-needed")


@pytest.mark.parametrize("field", ["evaluation", "calibration"])
def test_any_arrays_will_do_where_only_the_data_tell_the_inputs(
    http: httpx2.Client, worker: Worker, field: str
) -> None:
    model = uploaded(http, worker, Found(inputs=(), format="module"))
    data = dataset(http, npz(left=np.ones((4, 3)), right=np.ones((4, 2), np.int64), labels=np.arange(4)))
    answer = http.post("/jobs", json={"model": model, field: {"dataset": data}})
    assert answer.status_code == 202, answer.text


def test_labels_must_be_class_numbers_whatever_the_inputs(http: httpx2.Client, worker: Worker) -> None:
    model = uploaded(http, worker, Found(inputs=(), format="torchscript"))
    wrong = dataset(http, npz(x=np.ones((4, 3)), labels=np.ones(4)))
    answer = http.post("/jobs", json={"model": model, "evaluation": {"dataset": wrong}})
    assert codes(answer) == {("/evaluation/dataset", "dtype-mismatch")}


def test_an_optional_input_may_be_left_out_but_must_fit(http: httpx2.Client, worker: Worker) -> None:
    ids, mask = (
        InputSignature(name=name, dtype="int64", shape=("n", "m"), dynamic={"n": (1, None), "m": (2, 8)}, optional=last)
        for name, last in (("input_ids", False), ("attention_mask", True))
    )
    model = uploaded(http, worker, Found(inputs=(ids, mask), format="transformers"))
    assert Model.model_validate(http.get(f"/models/{model}").json()).inputs == (ids, mask)

    def answer(**arrays: Any) -> httpx2.Response:
        return http.post("/jobs", json={"model": model, "evaluation": {"dataset": dataset(http, npz(**arrays))}})

    tokens = np.ones((4, 6), np.int64)
    assert answer(input_ids=tokens).status_code == 202
    assert answer(input_ids=tokens, attention_mask=tokens).status_code == 202
    assert codes(answer(attention_mask=tokens, x=tokens)) >= {("/evaluation/dataset", "missing-input")}
    assert codes(answer(input_ids=tokens, attention_mask=np.ones((4, 9), np.int64))) == {
        ("/evaluation/dataset", "shape-mismatch")
    }
    assert http.post("/jobs", json={"model": model}).status_code == 202  # inputs are made from the config
