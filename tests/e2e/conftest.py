"""The whole service, as `make up` starts it: real Redis, gateway and workers, over real HTTP."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from fewbit.client import Client
from local import digits
from local.stack import Stack

QUICK_LEASES = {"FEWBIT_LEASE_S": "3", "FEWBIT_HEARTBEAT_S": "0.5", "FEWBIT_REAPER_S": "0.5"}


@dataclass(frozen=True)
class Upload:
    """A model on disk and the one it was exported from."""

    path: Path
    module: "digits.nn.Module"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), env=QUICK_LEASES) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with stack.client() as connected:
        yield connected


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx2.Client]:
    """What a user has who does not use our client."""
    headers = {"Authorization": f"Bearer {stack.key}"}
    with httpx2.Client(base_url=stack.url, headers=headers, trust_env=False, timeout=90) as plain:
        yield plain


@pytest.fixture(scope="session")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Upload:
    module, example = digits.train_transformer()
    path = digits.export_pt2(module, example, tmp_path_factory.mktemp("transformer") / "transformer.pt2")
    return Upload(path, module)


@pytest.fixture(scope="session")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Upload:
    module, example = digits.train_mlp()
    return Upload(digits.export_pt2(module, example, tmp_path_factory.mktemp("mlp") / "mlp.pt2"), module)


@pytest.fixture(scope="session")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.save_test_npz(tmp_path_factory.mktemp("data") / "test.npz")
