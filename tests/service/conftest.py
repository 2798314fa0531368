from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from redis import Redis

from store.embedded import EmbeddedRedis
from store.settings import StoreSettings
from tests.service.gateway import Gateway
from tests.service.worker import Worker


@pytest.fixture(scope="session")
def running_gateway(redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    small = {"FEWBIT_MAX_MODEL_BYTES": str(8 * 2**20), "FEWBIT_MAX_UNPACKED_DATASET_BYTES": str(32 * 2**20)}
    small |= {"FEWBIT_REQUESTS_PER_MINUTE": "600000", "FEWBIT_WEBHOOK_ALLOW_PRIVATE": "true"}
    with Gateway(tmp_path_factory.mktemp("gateway"), redis_server.url, small) as gateway:
        yield gateway


@pytest.fixture
def gateway(running_gateway: Gateway, redis: Redis) -> Gateway:
    """On an empty store."""
    return running_gateway


@pytest.fixture
def http(gateway: Gateway) -> httpx2.Client:
    return gateway.http


@pytest.fixture
def worker(gateway: Gateway, redis: Redis) -> Worker:
    return Worker(redis, StoreSettings(redis_url=gateway.env["REDIS_URL"], blobs_url=str(gateway.blobs)))
