"""One POST to a webhook's URL: the name is resolved, its addresses are checked, and the connection goes to one of those
addresses. Host, SNI and the certificate go by the name. No redirect is followed, no proxy is used."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import httpx2

from service.webhooks.addresses import LookUp, resolve, system_addresses

LONGEST_ANSWER = 64 * 1024
TIMEOUT = httpx2.Timeout(10.0, connect=5.0)


class Posting:
    """``trust``: whose certificates count; this machine's authorities unless told otherwise. Reading those takes tens
    of milliseconds, so that it is done once."""

    def __init__(
        self, allow_private: bool, look_up: LookUp = system_addresses, trust: ssl.SSLContext | None = None
    ) -> None:
        self._allow_private = allow_private
        self._look_up = look_up
        self._trust = trust or httpx2.create_ssl_context(trust_env=False)

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The answer's status. Raises ``Unreachable``, ``httpx2.HTTPError`` and ``OSError``."""
        target = await resolve(url, self._allow_private, self._look_up)
        extensions = {"sni_hostname": target.name}  # whose certificate it must be; the address is only where to knock
        named = {"Host": target.host, **headers}
        async with (
            httpx2.AsyncClient(verify=self._trust, trust_env=False, follow_redirects=False, timeout=TIMEOUT) as http,
            http.stream("POST", target.url, content=body, headers=named, extensions=extensions) as answer,
        ):
            await _bounded(answer)
            return answer.status_code


async def _bounded(answer: httpx2.Response) -> None:
    """Read a bounded part of the answer's body, and keep none of it."""
    size = 0
    async for chunk in answer.aiter_raw():
        size += len(chunk)
        if size > LONGEST_ANSWER:
            return
