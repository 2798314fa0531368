"""Messages that cannot be sent: a broker that is away for now is one thing, what will fail again is another."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from structlog.testing import capture_logs

from local.stack import free_port
from service.delivery import deliver
from store.embedded import EmbeddedRedis
from store.outage import is_outage
from store.queue import BrokerAway, Queue
from store.settings import StoreSettings

PASSWORD = "right-one"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path / "redis") as server:
        yield server


def on_tcp(broker: EmbeddedRedis) -> int:
    port = free_port()
    with Redis.from_url(broker.url) as client:
        client.config_set("port", port)
    return port


def killed(broker: EmbeddedRedis) -> str:
    broker.kill()
    return broker.url


def full(broker: EmbeddedRedis) -> str:
    with Redis.from_url(broker.url) as client:
        client.config_set("maxmemory", 1)
    return broker.url


def a_replica(broker: EmbeddedRedis) -> str:
    with Redis.from_url(broker.url) as client:
        client.replicaof("127.0.0.1", free_port())
    return broker.url


def nobody_listens(broker: EmbeddedRedis) -> str:
    return f"redis://127.0.0.1:{free_port()}/0"


def wrong_password(broker: EmbeddedRedis) -> str:
    port = on_tcp(broker)
    with Redis.from_url(broker.url) as client:
        client.config_set("requirepass", PASSWORD)
    return f"redis://:wrong@127.0.0.1:{port}/0"


def no_password(broker: EmbeddedRedis) -> str:
    return wrong_password(broker).replace(":wrong@", "")


def no_right_to_write(broker: EmbeddedRedis) -> str:
    with Redis.from_url(broker.url) as client:
        client.acl_setuser("default", commands=["-lpush"])
    return broker.url


Broken = Callable[[EmbeddedRedis], str]
AWAY: list[Broken] = [killed, full, a_replica, nobody_listens]
WRONG: list[Broken] = [
    wrong_password,
    no_password,
    no_right_to_write,
    lambda _: "http://127.0.0.1:6379/0",
    lambda _: "redis://127.0.0.1:port/0",
]


@pytest.mark.parametrize("broken", AWAY)
def test_a_broker_that_is_away_is_left_to_the_reaper(broker: EmbeddedRedis, broken: Broken) -> None:
    queue = Queue(StoreSettings(redis_url=broken(broker)))
    with pytest.raises(BrokerAway):
        queue.deliver_job("job_1", 1)
    with capture_logs() as logs:
        asyncio.run(deliver(lambda: queue.deliver_inspection("mdl_1")))
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [
        ("warning", "message not sent; the reaper will")
    ]


@pytest.mark.parametrize("broken", WRONG)
def test_what_is_wrong_and_stays_wrong_is_raised_at_once(broker: EmbeddedRedis, broken: Broken) -> None:
    queue = Queue(StoreSettings(redis_url=broken(broker)))
    with capture_logs() as logs, pytest.raises(Exception) as raised:  # noqa: PT011  # of whatever kind, but one
        asyncio.run(deliver(lambda: queue.deliver_job("job_1", 1)))
    assert not isinstance(raised.value, BrokerAway)
    assert not is_outage(raised.value)
    assert logs == []


def test_a_mistake_in_the_code_is_raised_at_once(broker: EmbeddedRedis) -> None:
    queue = Queue(StoreSettings(redis_url=broker.url))
    with pytest.raises(Exception, match="serializable"):
        asyncio.run(deliver(lambda: queue.deliver_inspection(object())))  # type: ignore[arg-type]


def test_everything_that_a_message_needs_is_imported_with_the_queue() -> None:
    """By a process of its own: this one has imported it all."""
    script = """
import sys
import tempfile
from pathlib import Path
from store.embedded import EmbeddedRedis
from store.queue import Queue
from store.settings import StoreSettings
with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder)) as server:
    queue = Queue(StoreSettings(redis_url=server.url))
    before = set(sys.modules)
    queue.deliver_job("job_1", 1)
    print(*{name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)
"""
    imported = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(imported) <= {"celery", "kombu", "billiard"}
