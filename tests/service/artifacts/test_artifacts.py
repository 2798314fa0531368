"""Artifacts: whole, in part, unchanged, or out of range."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import httpx2
import pytest

from fewbit.contract.resources import Artifact
from tests.service.uploads import job
from tests.service.worker import Worker

CONTENT = bytes(range(256)) * 10_000  # more than two pieces of the store's stream
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = f'"sha256-{SHA256}"'


@pytest.fixture
def url(http: httpx2.Client, worker: Worker, tmp_path: Path) -> str:
    posted = job(http, worker)
    worker.succeed(posted, tmp_path, torchscript=CONTENT)
    listed = http.get(f"/jobs/{posted}/artifacts").json()["artifacts"]
    artifact = Artifact.model_validate(listed[0])
    assert (len(listed), artifact.name, artifact.kind) == (1, "model.torchscript", "torchscript")
    assert (artifact.size, artifact.sha256) == (len(CONTENT), SHA256)
    return artifact.url


def test_the_whole_file_names_its_digest(http: httpx2.Client, url: str) -> None:
    answer = http.get(url)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["ETag"] == ETAG
    assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(SHA256)).decode()}:"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''model.torchscript"
    assert answer.headers["Content-Length"] == str(len(CONTENT))


def test_head_tells_the_same_without_the_bytes(http: httpx2.Client, url: str) -> None:
    whole, head = http.get(url), http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    varying = {"date", "x-request-id", "ratelimit"}
    told = [{name: value for name, value in answer.headers.items() if name not in varying} for answer in (whole, head)]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-1999999", 10, 2_000_000),
        ("bytes=2500000-", 2_500_000, len(CONTENT)),
        ("bytes=2559999-99999999", len(CONTENT) - 1, len(CONTENT)),
        ("bytes=-5", len(CONTENT) - 5, len(CONTENT)),
        ("bytes=-99999999", 0, len(CONTENT)),
        ("Bytes=7-8", 7, 9),
    ],
)
def test_a_part_is_206(http: httpx2.Client, url: str, asked: str, start: int, end: int) -> None:
    answer = http.get(url, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"
    assert answer.headers["Content-Length"] == str(end - start)
    assert answer.headers["ETag"] == ETAG


@pytest.mark.parametrize("asked", ["bytes=5-4", "bytes=0-1,5-6", "bytes=-", "items=0-1", "bytes=a-b", "bytes"])
def test_a_range_that_is_not_understood_is_passed_over(http: httpx2.Client, url: str, asked: str) -> None:
    answer = http.get(url, headers={"Range": asked})
    assert (answer.status_code, len(answer.content)) == (200, len(CONTENT))


@pytest.mark.parametrize("asked", ["bytes=2560000-", "bytes=9999999-99999999", "bytes=-0"])
def test_a_range_outside_is_416(http: httpx2.Client, url: str, asked: str) -> None:
    answer = http.get(url, headers={"Range": asked})
    assert (answer.status_code, answer.json()["type"]) == (416, "/problems/range-not-satisfiable")
    assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


def test_if_range_gives_the_part_only_of_the_same_file(http: httpx2.Client, url: str) -> None:
    same = http.get(url, headers={"Range": "bytes=5-9", "If-Range": ETAG})
    other = http.get(url, headers={"Range": "bytes=5-9", "If-Range": '"sha256-0000"'})
    assert (same.status_code, same.content) == (206, CONTENT[5:10])
    assert (other.status_code, len(other.content)) == (200, len(CONTENT))


@pytest.mark.parametrize("tag", [ETAG, f"W/{ETAG}", f'"x", {ETAG}', "*"])
def test_an_unchanged_file_is_304(http: httpx2.Client, url: str, tag: str) -> None:
    answer = http.get(url, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", ETAG)


def test_an_unknown_artifact_says_which_there_are(http: httpx2.Client, url: str) -> None:
    answer = http.get(url.replace("model.torchscript", "model.onnx"))
    assert answer.status_code == 404
    assert "model.torchscript" in answer.json()["detail"]


def test_an_unfinished_job_has_no_artifacts(http: httpx2.Client, worker: Worker) -> None:
    assert http.get(f"/jobs/{job(http, worker)}/artifacts").json() == {"artifacts": []}
