"""The surroundings every worker test may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from store.embedded import EmbeddedRedis
from tests.workers.world import World
from workers.sandbox.fork_server import ForkServer


@pytest.fixture(scope="session")
def scripted() -> Iterator[ForkServer]:
    """A fork server whose children do as the job's labels say."""
    server = ForkServer("tests.workers.scripted_engine:main", "tests.workers.scripted_engine:preload")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def engine() -> Iterator[ForkServer]:
    """A fork server with the real engine; it takes seconds to start."""
    server = ForkServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def world(tmp_path: Path, scripted: ForkServer) -> Iterator[World]:
    with EmbeddedRedis(tmp_path / "redis") as server:
        world = World(server, tmp_path / "world", scripted)
        yield world
        world.stopping.set()
        world.close()
