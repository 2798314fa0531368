"""Which addresses a webhook may reach: public ones. The name is resolved for every delivery, and the connection is made
to the address that was checked, so that DNS rebinding gains nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx2

from fewbit.client.address import LARGEST_PORT

LONGEST_URL = 2048
RESOLVE_S = 5.0
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_IPV4_INSIDE = (IPv6Network("2002::/16"), IPv6Network("2001::/23"))  # 6to4, Teredo and other assignments of IANA's


LookUp = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host at a port. Raises ``OSError`` or ``UnicodeError``."""


async def system_addresses(host: str, port: int) -> list[str]:
    """What this machine's resolver says."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(answer[4][0]).partition("%")[0] for answer in found]


class Unreachable(Exception):
    """The message is for the tenant: it names no address."""


@dataclass(frozen=True)
class Target:
    """Where a delivery goes: ``url`` with the address in place of the name, which goes into Host and SNI."""

    url: httpx2.URL
    host: str
    name: str


def check_url(url: str, allow_private: bool) -> httpx2.URL:
    """Raises ``Unreachable`` for what can be refused without asking anyone."""
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise Unreachable(f"url has at most {LONGEST_URL} printable ASCII characters.")
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise Unreachable("url is not a URL.") from error
    if parsed.scheme not in (("https", "http") if allow_private else ("https",)) or not parsed.host:
        raise Unreachable("url begins with https:// and a host.")
    if parsed.userinfo or parsed.fragment:
        raise Unreachable("url carries no user, password or fragment.")
    if not (port_of(parsed) in (80, 443) or 1024 <= port_of(parsed) <= LARGEST_PORT):
        raise Unreachable(f"url has the port 443, or one from 1024 to {LARGEST_PORT}.")
    literal = _literal(parsed.host)
    if literal and not (allow_private or is_public(literal)):
        raise Unreachable("url leads to an address that is not public.")
    return parsed


async def resolve(url: str, allow_private: bool, look_up: LookUp = system_addresses) -> Target:
    """The target at a public address of the name. All of its addresses must be public: a private one among them is not
    there by accident.
    Raises ``Unreachable``."""
    parsed = check_url(url, allow_private)
    try:
        async with asyncio.timeout(RESOLVE_S):
            addresses = [ip_address(address) for address in await look_up(parsed.host, port_of(parsed))]
    except (OSError, TimeoutError, UnicodeError) as error:
        raise Unreachable("The host's name has no address.") from error
    if not addresses or not (allow_private or all(map(is_public, addresses))):
        raise Unreachable("The host's address is not public.")
    return Target(parsed.copy_with(host=str(addresses[0])), parsed.netloc.decode("ascii"), parsed.host)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Not private, loopback, link-local (169.254.169.254 among them), shared (RFC 6598), multicast or reserved; and no
    IPv6 address that stands for an IPv4 one (mapped, NAT64, 6to4, Teredo)."""
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    if isinstance(address, IPv6Address):
        return address in _GLOBAL_UNICAST and not any(address in network for network in _IPV4_INSIDE)
    return True


def port_of(url: httpx2.URL) -> int:
    if url.port is not None:
        return url.port
    return 443 if url.scheme == "https" else 80


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None
