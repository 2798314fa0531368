"""Where a webhook's connection goes, and whom it believes: over real TLS, to servers of this machine.

What stands for the world's name servers is a table; everything behind it is what the gateway runs.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest

from service.webhooks.addresses import LookUp, Unreachable, resolve
from service.webhooks.posting import Posting
from tests.service.webhooks.authority import Authority
from tests.service.webhooks.receiver import Receiver

HOST = "hooks.example"


class Names:
    """Says each of ``answers`` once, and the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "known")


@pytest.fixture
def receiver(authority: Authority, request: pytest.FixtureRequest) -> Iterator[Receiver]:
    receiver = Receiver(getattr(request, "param", 204), tls=authority.server(f"DNS:{HOST}"))
    yield receiver
    receiver.close()


def post(receiver: Receiver, authority: Authority, look_up: LookUp, allow_private: bool = True) -> int:
    posting = Posting(allow_private, look_up, authority.trusted())
    return asyncio.run(posting(f"https://{HOST}:{receiver.port}/hook", b"{}", {"webhook-id": "dlv_1"}))


def test_the_connection_goes_by_number_and_host_and_certificate_by_name(
    receiver: Receiver, authority: Authority
) -> None:
    names = Names(["127.0.0.1"])
    assert post(receiver, authority, names) == 204
    assert receiver.names == [HOST]
    assert receiver.received[0][0]["host"] == f"{HOST}:{receiver.port}"
    assert receiver.received[0][0]["webhook-id"] == "dlv_1"


def test_a_name_is_looked_up_once_so_that_a_second_answer_changes_nothing(
    receiver: Receiver, authority: Authority
) -> None:
    names = Names(["127.0.0.1"], ["127.0.0.2"])  # nobody listens at the second
    assert post(receiver, authority, names) == 204
    assert names.asked == [HOST]


@pytest.mark.parametrize("subject", ["DNS:other.example", "DNS:example", "IP:127.0.0.1"])
def test_a_certificate_of_another_is_refused_even_of_the_address_itself(authority: Authority, subject: str) -> None:
    assert_refused(authority.server(subject), authority)


def test_a_certificate_of_an_unknown_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    assert_refused(Authority(tmp_path / "stranger").server(f"DNS:{HOST}"), authority)


def test_a_certificate_that_has_ended_is_refused(authority: Authority) -> None:
    assert_refused(authority.server(f"DNS:{HOST}", days=-1), authority)


def assert_refused(tls: ssl.SSLContext, authority: Authority) -> None:
    receiver = Receiver(204, tls=tls)
    try:
        with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
            post(receiver, authority, Names(["127.0.0.1"]))
        assert (receiver.names, receiver.received) == ([HOST], [])
    finally:
        receiver.close()


@pytest.mark.parametrize("receiver", [301, 302, 303, 307, 308], indirect=True)
def test_a_redirect_is_an_answer_and_not_followed(receiver: Receiver, authority: Authority) -> None:
    assert 300 <= post(receiver, authority, Names(["127.0.0.1"])) < 400
    assert len(receiver.received) == 1


PRIVATE = (
    ["127.0.0.1"], ["10.0.0.1"], ["172.31.255.255"], ["192.168.0.1"], ["169.254.169.254"], ["100.64.0.1"], ["0.0.0.0"],
    ["::1"], ["::ffff:127.0.0.1"], ["::ffff:8.8.8.8"], ["64:ff9b::7f00:1"], ["fd00::1"], ["fe80::1"], ["2002:7f00:1::"],
    ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"],
)  # fmt: skip


@pytest.mark.parametrize("addresses", PRIVATE, ids=",".join)
def test_a_name_that_leads_to_a_private_address_is_not_connected_to(
    receiver: Receiver, authority: Authority, addresses: Sequence[str]
) -> None:
    with pytest.raises(Unreachable, match="not public"):
        post(receiver, authority, Names(addresses), allow_private=False)
    assert (receiver.names, receiver.received) == ([], [])


def test_a_name_that_was_public_when_it_was_given_is_looked_at_again(receiver: Receiver, authority: Authority) -> None:
    names = Names(["8.8.8.8"], ["127.0.0.1"])
    target = asyncio.run(resolve(f"https://{HOST}:{receiver.port}/hook", False, names))
    assert (target.url.host, target.name) == ("8.8.8.8", HOST)
    with pytest.raises(Unreachable, match="not public"):
        post(receiver, authority, names, allow_private=False)
    assert (receiver.names, receiver.received) == ([], [])


def test_this_machine_has_no_name_that_is_let_through() -> None:
    with pytest.raises(Unreachable, match="not public"):
        asyncio.run(Posting(allow_private=False)("https://localhost:8443/", b"{}", {}))
