"""Webhooks as a user of the Python client and the command line has them, against the real gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fewbit.client import Client
from fewbit.contract.resources import Delivery
from fewbit.errors import FewbitError
from tests.service.gateway import KEY, Gateway
from tests.service.uploads import ready_model
from tests.service.webhooks.receiver import Receiver
from tests.service.worker import Worker


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with Client(gateway.url, KEY) as client:
        yield client


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver(204)
    yield receiver
    receiver.close()


def until(look: Callable[[], tuple[Delivery, ...]], status: str) -> Delivery:
    """The newest delivery, once it has this status."""
    deadline = time.monotonic() + 10
    while not (listed := look()) or listed[0].status != status:
        assert time.monotonic() < deadline, listed
        time.sleep(0.05)
    return listed[0]


def test_a_webhook_is_made_tested_told_of_a_job_and_deleted(
    client: Client, worker: Worker, gateway: Gateway, receiver: Receiver, tmp_path: Path
) -> None:
    made = client.create_webhook(receiver.url + "/hook")
    assert made.secret.startswith("whsec_")
    assert [webhook.id for webhook in client.webhooks()] == [made.id] == [client.webhook(made).id]
    tested = client.test_webhook(made)
    assert until(lambda: client.deliveries(made), "delivered").id == tested.id
    job = client.create_job({"model": ready_model(gateway.http, worker), "webhook": made.id})
    worker.succeed(job.id, tmp_path)
    receiver.wait(2)
    told = until(lambda: client.deliveries(made), "delivered")
    assert (told.type, told.job, told.attempts[0].status) == ("job.succeeded", job.id, 204)
    client.delete_webhook(made)
    assert client.webhooks() == ()
    with pytest.raises(FewbitError) as raised:
        client.deliveries(made.id)
    assert raised.value.slug == "not-found"


def test_a_secret_is_rotated_by_a_second_webhook_for_the_same_url(client: Client, receiver: Receiver) -> None:
    old, new = (client.create_webhook(receiver.url) for _ in range(2))
    assert old.secret != new.secret
    client.delete_webhook(old)
    assert [(webhook.id, webhook.url) for webhook in client.webhooks()] == [(new.id, receiver.url)]


def test_a_url_that_cannot_be_told_anything_is_refused_with_the_reason(client: Client) -> None:
    with pytest.raises(FewbitError, match="at /url"):
        client.create_webhook("ftp://example.com/")


def test_the_command_line_does_the_same(gateway: Gateway, receiver: Receiver, client: Client) -> None:
    def fewbit(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"COLUMNS": "140", "FEWBIT_URL": gateway.url, "FEWBIT_KEY": KEY}
        command = [sys.executable, "-c", "from fewbit.cli import app; app()", "webhooks", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=60)

    identifier, secret = fewbit("create", receiver.url + "/hook").stdout.split()
    assert (identifier[:4], secret[:6]) == ("whk_", "whsec_")
    listed = fewbit("list").stdout
    assert identifier in listed
    assert receiver.url + "/hook" in listed
    assert secret not in listed
    assert fewbit("test", identifier).returncode == 0
    until(lambda: client.deliveries(identifier), "delivered")
    shown = fewbit("deliveries", identifier).stdout
    assert "webhook.test" in shown
    assert "204" in shown
    assert json.loads(fewbit("deliveries", identifier, "--json").stdout)[0]["status"] == "delivered"
    assert fewbit("delete", identifier).returncode == 0
    gone = fewbit("delete", identifier)
    assert gone.returncode == 2
    assert f"There is no webhook {identifier}" in gone.stderr
