from __future__ import annotations

from collections.abc import Iterator

import pytest

from fewbit.client import Client
from tests.fewbit.scripted import Scripted


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as server:
        yield server


@pytest.fixture
def client(server: Scripted) -> Iterator[Client]:
    with Client(server.url, "secret", patience=5) as client:
        yield client
