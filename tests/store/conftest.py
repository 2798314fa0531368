"""A real Redis and a real folder of blobs, emptied for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from store.blobs.blob_store import Blobs
from store.clients import connect
from store.embedded import EmbeddedRedis
from store.jobs.leases import Leases
from store.models import InspectedModels
from store.settings import StoreSettings


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def settings(server: EmbeddedRedis, tmp_path: Path) -> StoreSettings:
    return StoreSettings(redis_url=server.url, blobs_url=str(tmp_path / "blobs"), lease_s=0.3, max_attempts=2)


@pytest.fixture
def sync(settings: StoreSettings) -> Iterator[redis.Redis]:
    with connect(settings) as client:
        client.flushall()
        yield client


@pytest.fixture
def leases(sync: redis.Redis, settings: StoreSettings) -> Leases:
    return Leases(sync, settings)


@pytest.fixture
def inspected(sync: redis.Redis, settings: StoreSettings) -> InspectedModels:
    return InspectedModels(sync, settings)


@pytest.fixture
def blobs(settings: StoreSettings) -> Blobs:
    return Blobs.of(settings)
