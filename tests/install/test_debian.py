"""The same on Debian's own Pythons, 3.11.2 and 3.13: as root, with debootstrap. `make images` runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install import scenarios
from tests.install.places import Place, debian

pytestmark = pytest.mark.images


@pytest.fixture(scope="module")
def debian12() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="fewbit-") as root:  # a short name: Unix sockets lie in it
        yield debian("bookworm", Path(root))


@pytest.fixture(scope="module")
def debian13() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="fewbit-") as root:
        yield debian("trixie", Path(root))


def test_client_and_gateway_on_debian_12(debian12: Place, wheel: Path) -> None:
    assert debian12.run(debian12.python, "-V") == "Python 3.11.2\n"
    scenarios.the_client_sends_a_model_to_the_gateway(debian12, wheel)


def test_worker_on_debian_12(debian12: Place) -> None:
    scenarios.the_worker_becomes_healthy(debian12)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export's own
def test_runtime_on_debian_12(debian12: Place, wheel: Path, tmp_path: Path) -> None:
    scenarios.the_runtime_loads_an_artifact(debian12, wheel, tmp_path)


def test_client_and_gateway_on_debian_13(debian13: Place, wheel: Path) -> None:
    assert debian13.run(debian13.python, "-V").startswith("Python 3.13.")
    scenarios.the_client_sends_a_model_to_the_gateway(debian13, wheel)
