"""One real Redis for all tests that need one; each test finds it empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from store.embedded import EmbeddedRedis
from store.settings import StoreSettings


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(redis_server: EmbeddedRedis) -> Iterator[Redis]:
    """The sync client, on an empty database."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def store_settings(redis_server: EmbeddedRedis, tmp_path: Path) -> StoreSettings:
    return StoreSettings(redis_url=redis_server.url, blobs_url=str(tmp_path / "blobs"))
