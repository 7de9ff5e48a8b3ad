"""Owns which addresses a webhook may reach: the rules against making this server call into its own network.

It must not know what is sent. The address that was checked is the one to connect to: a name may change in between.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable

import httpx

from tunesmith_server.errors import InvalidRequestError

MAX_URL_LENGTH = 2000

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Gives the addresses of a host name and port; raises OSError when there are none."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_ADDRESSES = 4
# Unicast addresses of the public internet. Every form that carries an IPv4 address inside lies outside of it or is
# named below, so none of them smuggles a private one through.
_PUBLIC_V6 = ipaddress.ip_network("2000::/3")
_REFUSED_V6 = tuple(
    ipaddress.ip_network(text)
    for text in (
        "2001::/23",  # protocol assignments, with Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
_REFUSED_V4 = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # public by its number, but answered by the host of a virtual machine of Azure
        "192.0.0.0/24",  # protocol assignments, with the metadata address of a cloud
        "192.88.99.0/24",  # 6to4 relays
    )
)


def parse_url(text: str, *, allow_private: bool) -> httpx.URL:
    """The URL if its form is allowed; raises InvalidRequestError (`invalid_webhook_url`).

    `allow_private`: the operator lets webhooks reach private addresses, and plain http with them.
    """
    if len(text) > MAX_URL_LENGTH or not text.isprintable() or text != text.strip():
        raise _refused(f"must be a URL of at most {MAX_URL_LENGTH} printable characters")
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError) as error:
        raise _refused("is not a URL") from error
    if url.scheme != "https" and not (allow_private and url.scheme == "http"):
        raise _refused("must start with https://")
    if not host or len(host) > 253:
        raise _refused("must name a host")
    if url.userinfo:
        raise _refused("may not hold a user name or password; check the signature instead")
    if url.fragment:
        raise _refused("may not have a fragment")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise _refused("must use a port from 1 to 65535")
    return url


async def checked_addresses(url: httpx.URL, resolve: Resolve, *, allow_private: bool) -> list[str]:
    """The addresses of the URL's host, all of them allowed; raises InvalidRequestError otherwise.

    Codes: `webhook_host_unknown` when the name has no address, `webhook_target_refused` when one is not public.
    """
    host = url.raw_host.decode("ascii")
    try:
        found = await resolve(host, url.port or _DEFAULT_PORTS[url.scheme])
    except (OSError, UnicodeError) as error:
        raise InvalidRequestError(
            "webhook_host_unknown", f"`url`: the host {host} has no address. Check its name.", param="url"
        ) from error
    if not allow_private and not all(is_public(address) for address in found):
        raise InvalidRequestError(
            "webhook_target_refused",
            f"`url`: the host {host} has an address that is not public. Use a host of the public internet, or ask "
            "the operator for TUNESMITH_WEBHOOK_ALLOW_PRIVATE.",
            param="url",
        )
    return list(dict.fromkeys(found))[:_MAX_ADDRESSES]


def is_public(text: str) -> bool:
    """Whether the address belongs to a single machine of the public internet; anything unreadable does not."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        return address in _PUBLIC_V6 and not any(address in network for network in _REFUSED_V6)
    special = address.is_multicast or address.is_reserved or any(address in network for network in _REFUSED_V4)
    return address.is_global and not special


def _refused(reason: str) -> InvalidRequestError:
    return InvalidRequestError("invalid_webhook_url", f"`url`: it {reason}.", param="url")
