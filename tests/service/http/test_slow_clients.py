"""Clients that take their time, or only a place: none of them keeps anyone waiting, and none stays for ever."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from store.embedded import EmbeddedRedis
from store.settings import StoreSettings
from tests.service.gateway import KEY, Gateway
from tests.service.uploads import job
from tests.service.worker import Worker

MOST, IDLE_S = 40, 0.5
FILE = bytes(range(256)) * 32_768  # 8 MiB
HEAD = "Host: x\r\n"
KEYED = f"{HEAD}Authorization: Bearer {KEY}\r\n"


@pytest.fixture
def small(tmp_path: Path, redis_server: EmbeddedRedis, redis: Redis) -> Iterator[Gateway]:
    env = {"FEWBIT_IDLE_S": str(IDLE_S), "FEWBIT_MAX_CONNECTIONS": str(MOST)}
    with Gateway(tmp_path, redis_server.url, env) as gateway:
        yield gateway


@pytest.fixture
def lines(small: Gateway) -> Iterator[Lines]:
    with ExitStack() as opened:
        yield Lines(small, opened)


class Lines:
    """Connections by hand, with so small a buffer that what is not read stays where it was sent from."""

    def __init__(self, gateway: Gateway, opened: ExitStack) -> None:
        self._gateway = gateway
        self._opened = opened

    def open(self, request: str = "") -> socket.socket:
        line = self._opened.enter_context(socket.socket())
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        line.settimeout(10)
        line.connect(("127.0.0.1", self._gateway.port))
        line.sendall(request.encode())
        return line


def gone(small: Gateway, files: int) -> None:
    """Wait until the gateway has no more files open than that."""
    deadline = time.monotonic() + 8
    while open_files(small) > files:
        assert time.monotonic() < deadline, open_files(small)
        time.sleep(0.05)


def open_files(gateway: Gateway) -> int:
    return len(os.listdir(f"/proc/{gateway.process.pid}/fd"))  # noqa: PTH208


def artifact(small: Gateway, redis: Redis, folder: Path) -> str:
    worker = Worker(redis, StoreSettings(redis_url=small.env["REDIS_URL"], blobs_url=str(small.blobs)))
    posted = job(small.http, worker)
    worker.succeed(posted, folder, pt2=FILE)
    return f"/jobs/{posted}/artifacts/model.pt2"


def slowest(http: httpx2.Client, path: str = "/jobs", times: int = 20) -> float:
    """Of some requests, in seconds."""
    taken = []
    for _ in range(times):
        started = time.monotonic()
        assert http.get(path).status_code == 200
        taken.append(time.monotonic() - started)
    return max(taken)


def test_readers_of_a_byte_at_a_time_are_cut_off_and_keep_nobody_waiting(
    small: Gateway, lines: Lines, redis: Redis, tmp_path: Path
) -> None:
    path = artifact(small, redis, tmp_path)
    readers = [lines.open(f"GET {path} HTTP/1.1\r\n{KEYED}\r\n") for _ in range(20)]
    assert slowest(small.http) < 1
    deadline = time.monotonic() + 10
    while small.log.count("reader cut off") < len(readers):
        assert time.monotonic() < deadline
        assert all(reader.recv(1) for reader in readers)  # of what has arrived
        time.sleep(0.1)
    for reader in readers:
        assert len(rest(reader)) < len(FILE) / 2
    assert "Traceback" not in small.log
    assert small.http.get(path).content == FILE


def rest(line: socket.socket) -> bytes:
    """What had arrived before the line was cut: not closed, which would look like an end."""
    read = b""
    while True:
        try:
            piece = line.recv(65536)
        except ConnectionResetError:
            return read
        assert piece
        read += piece


def test_a_slow_reader_who_does_read_gets_it_all(small: Gateway, lines: Lines, redis: Redis, tmp_path: Path) -> None:
    line = lines.open(f"GET {artifact(small, redis, tmp_path)} HTTP/1.1\r\n{KEYED}Range: bytes=0-399999\r\n\r\n")
    started, read = time.monotonic(), b""
    while len(read.partition(b"\r\n\r\n")[2]) < 400_000:
        piece = line.recv(4096)
        assert piece
        read += piece
        time.sleep(0.05)
    assert time.monotonic() - started > 4 * IDLE_S * 2  # long enough to have been cut off twice
    assert read.partition(b"\r\n\r\n")[2] == FILE[:400_000]


def test_a_watcher_who_does_not_read_is_cut_off(small: Gateway, lines: Lines, redis: Redis) -> None:
    worker = Worker(redis, StoreSettings(redis_url=small.env["REDIS_URL"], blobs_url=str(small.blobs)))
    posted = job(small.http, worker)
    slowest(small.http)
    before = open_files(small)
    lines.open(f"GET /jobs/{posted}/events HTTP/1.1\r\n{KEYED}\r\n")
    for _ in range(300):
        redis.xadd(
            f"fewbit:job:{posted}:events", {"event": "log", "data": '{"text":"' + "a" * 20_000 + '"}', "at": "now"}
        )
    gone(small, before + 1)  # a connection to Redis may stay in the pool
    assert "reader cut off" in small.log
    assert small.http.post(f"/jobs/{posted}/cancel").status_code == 200


def test_connections_that_say_nothing_make_room(small: Gateway, lines: Lines) -> None:
    before = open_files(small)
    silent = [lines.open() for _ in range(6 * MOST)]
    assert slowest(small.http, times=5) < 1
    assert open_files(small) <= before + MOST + 2
    for line in silent[: 2 * MOST]:
        with pytest.raises(ConnectionResetError):
            line.recv(1)
    gone(small, before + 1)  # the rest have had their time for headers


def test_answers_that_nobody_reads_make_room_unless_they_are_for_a_key(small: Gateway, lines: Lines) -> None:
    for _ in range(2 * MOST):
        lines.open(f"GET /openapi.json HTTP/1.1\r\n{HEAD}\r\n" * 5)  # more than the kernel takes
    assert slowest(small.http, times=5) < 1


def test_who_is_served_stays_and_a_gateway_full_of_them_says_so(small: Gateway, lines: Lines, redis: Redis) -> None:
    worker = Worker(redis, StoreSettings(redis_url=small.env["REDIS_URL"], blobs_url=str(small.blobs)))
    posted = job(small.http, worker)
    small.http.close()
    watchers = [lines.open(f"GET /jobs/{posted}/events HTTP/1.1\r\n{KEYED}\r\n") for _ in range(MOST)]
    assert all(watcher.recv(12) == b"HTTP/1.1 200" for watcher in watchers)
    for _ in range(2 * MOST):
        assert lines.open().recv(12) == b"HTTP/1.1 503"
    redis.xadd(f"fewbit:job:{posted}:events", {"event": "done", "data": "{}", "at": "now"})
    for watcher in watchers:
        read = b""
        while b"event: done" not in read:
            piece = watcher.recv(4096)
            assert piece
            read += piece


def test_the_rest_of_a_body_that_was_refused_may_not_drip_for_ever(small: Gateway, lines: Lines) -> None:
    line = lines.open(f"POST /models HTTP/1.1\r\n{HEAD}Content-Length: 1000000\r\n\r\n")
    assert line.recv(12) == b"HTTP/1.1 401"
    started = time.monotonic()
    while a_byte_goes(line):
        assert time.monotonic() - started < 3
        time.sleep(0.05)


def a_byte_goes(line: socket.socket) -> bool:
    try:
        return line.send(b"a") == 1
    except (ConnectionResetError, BrokenPipeError):
        return False
