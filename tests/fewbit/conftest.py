from __future__ import annotations

from collections.abc import Iterator

import pytest
from scripted import Scripted

from fewbit.client.client import Client


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as server:
        yield server


@pytest.fixture
def client(server: Scripted) -> Iterator[Client]:
    with Client(server.url, "secret", patience=5) as client:
        yield client
