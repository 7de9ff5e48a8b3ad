"""One POST: to the address that was checked, under the name of the URL, and never further."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.support.loopback_http import Answer as Reply
from tests.support.loopback_http import LoopbackServer, Received
from tests.support.ports import free_ports
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.webhooks import targets
from tunesmith_server.webhooks.sender import WebhookSender
from tunesmith_server.webhooks.targets import Resolve

BODY = b'{"id":"evt_1"}'


class Names:
    """A resolver that the test writes."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@asynccontextmanager
async def sender_with(
    resolve: Resolve, *, allow_private: bool = True, timeout_seconds: float = 10.0
) -> AsyncIterator[WebhookSender]:
    sender = WebhookSender(allow_private=allow_private, resolve=resolve, timeout_seconds=timeout_seconds)
    try:
        yield sender
    finally:
        await sender.close()


@asynccontextmanager
async def listening(converse: Callable[[StreamReader, StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    """A TCP server whose conversations have ended when the block has; gives its port."""
    conversations: list[asyncio.Task[None]] = []

    async def hold(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            await converse(reader, writer)
        finally:
            writer.close()

    def begin(reader: StreamReader, writer: StreamWriter) -> None:
        conversations.append(asyncio.create_task(hold(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*conversations, return_exceptions=True)


async def test_the_request_reaches_the_resolved_address_with_the_urls_own_host() -> None:
    seen: list[Received] = []
    server = LoopbackServer(0, lambda request: seen.append(request) or Reply(204))  # type: ignore[func-returns-value]
    names = Names(["127.0.0.1"])
    try:
        async with sender_with(names) as sender:
            answer = await sender.post(f"http://hooks.example.com:{server.port}/in?key=1", {"webhook-id": "wh_1"}, BODY)
    finally:
        server.stop()

    assert (answer.status, answer.error, answer.accepted) == (204, None, True)
    assert names.asked == [("hooks.example.com", server.port)]
    [request] = seen
    assert (request.method, request.path, request.query, request.body) == ("POST", "/in", {"key": "1"}, BODY)
    assert request.headers["host"] == f"hooks.example.com:{server.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "wh_1"


async def test_tls_greets_with_the_urls_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "is_public", lambda address: address == "127.0.0.1")
    greetings: list[bytes] = []

    async def greet(reader: StreamReader, writer: StreamWriter) -> None:
        greetings.append(await reader.read(4096))

    async with listening(greet) as port, sender_with(Names(["127.0.0.1"]), allow_private=False) as sender:
        answer = await sender.post(f"https://hooks.example.com:{port}/", {}, BODY)

    assert b"hooks.example.com" in greetings[0]
    assert answer.status is None
    assert answer.error is not None
    assert answer.error.startswith("The connection failed")


async def test_a_name_that_turned_private_after_its_check_is_not_called() -> None:
    names = Names(["8.8.8.8"], ["127.0.0.1"])
    async with sender_with(names, allow_private=False) as sender:
        await sender.check("https://rebind.example.com/")
        answer = await sender.post("https://rebind.example.com/", {}, BODY)

    assert answer.status is None
    assert answer.error is not None
    assert "not public" in answer.error
    assert len(names.asked) == 2


async def test_redirects_are_not_followed() -> None:
    server = LoopbackServer(0, lambda request: Reply(307, headers={"location": "http://127.0.0.1:1/"}))
    try:
        async with sender_with(Names(["127.0.0.1"])) as sender:
            answer = await sender.post(f"http://hooks.example.com:{server.port}/", {}, BODY)
    finally:
        server.stop()

    assert (answer.status, answer.accepted) == (307, False)


async def test_another_address_is_tried_when_nobody_listens_at_the_first() -> None:
    server = LoopbackServer(0, lambda request: Reply(200))
    try:
        async with sender_with(Names(["127.0.0.2", "127.0.0.1"])) as sender:
            answer = await sender.post(f"http://hooks.example.com:{server.port}/", {}, BODY)
    finally:
        server.stop()

    assert answer.status == 200


@pytest.mark.parametrize("drip", [b"", b"HTTP/1.1 200 OK\r\nx-a: "])
async def test_a_receiver_that_stalls_costs_a_bounded_time(drip: bytes) -> None:
    async def stall(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(drip)
        await reader.read()  # until the sender hangs up

    async with listening(stall) as port, sender_with(Names(["127.0.0.1"]), timeout_seconds=0.1) as sender:
        answer = await sender.post(f"http://hooks.example.com:{port}/", {}, BODY)

    assert answer.status is None
    assert answer.error is not None


async def test_an_endless_answer_is_not_read() -> None:
    async def flood(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n" + b"x" * 65536)
        await reader.read()

    async with listening(flood) as port, sender_with(Names(["127.0.0.1"])) as sender:
        answer = await sender.post(f"http://hooks.example.com:{port}/", {}, BODY)

    assert answer.accepted


async def test_a_closed_port_and_nonsense_are_reported_not_raised() -> None:
    async def babble(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x00\x01 nonsense\r\n\r\n")

    async with listening(babble) as port, sender_with(Names(["127.0.0.1"])) as sender:
        for each in (port, *free_ports(1)):
            answer = await sender.post(f"http://hooks.example.com:{each}/", {}, BODY)
            assert answer.status is None
            assert answer.error is not None


async def test_a_lookup_that_hangs_costs_a_bounded_time() -> None:
    async def hang(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    async with sender_with(hang, timeout_seconds=0.05) as sender:
        assert (await sender.post("http://hooks.example.com/", {}, BODY)).status is None
        with pytest.raises(InvalidRequestError, match="looked up in time"):
            await sender.check("http://hooks.example.com/")
