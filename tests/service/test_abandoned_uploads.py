"""A gateway dies while it judges an upload. What it held is not held for ever, and what it left lying goes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest
from redis import Redis

from store.blobs.blob_store import Blobs
from store.blobs.references import HELD_S, References
from store.embedded import EmbeddedRedis
from store.records import HOLDS
from tests.service.gateway import Gateway
from tests.service.uploads import digits, npz, post

STORED = "fewbit:tenant:default:stored"


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)


@pytest.fixture
def large() -> bytes:
    """Takes a tenth of a second to judge, and more."""
    return npz(x=np.ones((64, 1 << 19), np.float32))


def test_what_it_held_is_given_back_after_some_hours(
    tmp_path: Path, redis_server: EmbeddedRedis, redis: Redis, large: bytes
) -> None:
    def upload() -> None:
        with suppress(httpx2.TransportError):
            post(gateway.http, "/datasets", large)

    with Gateway(tmp_path, redis_server.url) as gateway:
        uploading = threading.Thread(target=upload)
        uploading.start()
        until(lambda: redis.zcard(HOLDS))
        until(gateway.blob_files)
        gateway.process.kill()
        gateway.process.wait()
        uploading.join()
        assert int(redis.hget(STORED, "total") or 0) == len(large)
        references = References(redis, Blobs(str(gateway.blobs)), 1)
        assert references.sweep() == []
        (holder,) = references.sweep(time.time() + HELD_S + 1)
    assert holder.startswith("upload:")
    assert [path for path in gateway.blob_files() if path.startswith("sha256/")] == []
    assert redis.hgetall(STORED) == {b"total": b"0"}
    assert redis.zcard(HOLDS) == 0


def test_an_upload_that_is_judged_is_held_no_longer(gateway: Gateway, redis: Redis) -> None:
    assert post(gateway.http, "/datasets", digits()).status_code == 201
    assert post(gateway.http, "/datasets", npz(o=np.array([{}], dtype=object))).status_code == 422
    assert redis.zcard(HOLDS) == 0


def test_what_it_left_lying_is_wiped_by_the_next_that_starts(
    tmp_path: Path, redis_server: EmbeddedRedis, redis: Redis
) -> None:
    left = [tmp_path / "blobs" / name for name in (".reading-old", ".reading-new", "incoming/old", "incoming/new")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.startswith("."):
            path.mkdir()
            (path / "upload").write_bytes(b"x")
        else:
            path.write_bytes(b"x")
        if path.name.endswith("old"):
            os.utime(path, (0, 0))
    with Gateway(tmp_path, redis_server.url):
        until(lambda: [path.exists() for path in left] == [False, True, False, True])
