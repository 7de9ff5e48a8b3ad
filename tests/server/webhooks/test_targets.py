"""No webhook makes the server call into its own network."""

from __future__ import annotations

import pytest

from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.webhooks.resolver import SystemResolver
from tunesmith_server.webhooks.targets import checked_addresses, is_public, parse_url

PUBLIC = ["8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"]
REFUSED = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",  # metadata of most clouds
    "100.100.100.200",  # metadata of another
    "192.0.0.192",  # and of another
    "168.63.129.16",  # the host of Azure's machines
    "100.64.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::1",
    "2001:0:7f00:1::1",
    "2001:db8::1",
    "3fff::1",
    "100::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1%eth0",
    "fec0::1",
    "ff02::1",
    "5f00::1",
    "localhost",
    "",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", REFUSED)
def test_every_other_form_is_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0", "0.0.0.0"],
)
async def test_spellings_of_loopback_are_seen_through(host: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await checked_addresses(
            parse_url(f"https://{host}/", allow_private=False), SystemResolver(), allow_private=False
        )

    assert caught.value.code in {"webhook_target_refused", "webhook_host_unknown", "invalid_webhook_url"}
    assert caught.value.param == "url"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hooks.example.com",
        "http://hooks.example.com/",
        "ftp://hooks.example.com/",
        "file:///etc/passwd",
        "https:///path",
        "https://user:password@hooks.example.com/",
        "https://hooks.example.com/#fragment",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:99999/",
        "https://hooks.example.com\r\nx-evil: 1/",
        "https://hooks.example.com/\x00",
        " https://hooks.example.com/",
        "https://[::1/",
        "https://" + "a" * 300 + ".example.com/",
        "https://hooks.example.com/" + "a" * 2000,
        "javascript:alert(1)",
    ],
)
def test_what_is_no_plain_https_url_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_url(text, allow_private=False)

    assert (caught.value.code, caught.value.param) == ("invalid_webhook_url", "url")


def test_an_operator_may_allow_plain_http() -> None:
    assert parse_url("http://intranet:8080/hook?a=1", allow_private=True).port == 8080


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("hooks.example.com", 443)
        return ["8.8.8.8", "10.0.0.1"]

    url = parse_url("https://hooks.example.com/", allow_private=False)
    with pytest.raises(InvalidRequestError) as caught:
        await checked_addresses(url, resolve, allow_private=False)

    assert caught.value.code == "webhook_target_refused"
    assert await checked_addresses(url, resolve, allow_private=True) == ["8.8.8.8", "10.0.0.1"]


async def test_a_name_without_an_address_is_the_users_to_correct() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    with pytest.raises(InvalidRequestError) as caught:
        await checked_addresses(parse_url("https://nowhere.example/", allow_private=False), resolve, allow_private=True)

    assert caught.value.code == "webhook_host_unknown"
