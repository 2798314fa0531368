"""One real Redis for all tests that need one, empty for each; and which tests want the machine for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from store.embedded import EmbeddedRedis
from store.settings import StoreSettings

HERE = Path(__file__).parent
ALONE = (  # they measure time or memory, or run gateway and workers with all cores: `make test` runs them one by one
    "e2e", "local", "store/test_outages.py", "service/test_tenants.py", "service/http/test_hostile_requests.py",
    "service/http/test_slow_clients.py", "service/webhooks/test_webhooks.py", "store/test_rates.py",
    "workers/test_celery.py", "workers/test_supervisor.py", "workers/sandbox/test_child.py",
    "workers/engine/measurement/test_memory.py", "fewbit/test_page.py",
    "service/pages/test_docs_page.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in ``ALONE``."""
    alone = {HERE / path for path in ALONE}
    for item in items:
        if alone & {item.path, *item.path.parents}:
            item.add_marker("alone")


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
