"""Owns the way of a client's own request to another gateway, and of the answer back, which may be a stream.

It must not know models or who is chosen. The peer authenticates, limits, moderates and meters as if the client had come
to it: what it is told besides is which model was chosen, and that this is the last gateway on the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from enum import StrEnum
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
from starlette.requests import Request
from starlette.responses import Response

from tunesmith_inference import responses_stream
from tunesmith_inference.circuits import Circuits
from tunesmith_inference.errors import engine_failed, envelope
from tunesmith_inference.peers import Peers
from tunesmith_inference.placement import Peer
from tunesmith_inference.request_body import Route
from tunesmith_inference.router import Servable
from tunesmith_inference.streaming import HeldStream, event

_log = logging.getLogger(__name__)

_CHOSEN = "x-tunesmith-forwarded"
"""The model that was chosen. Who sends it without being a gateway chooses where a model of theirs is loaded."""
_IF_ROOM = "x-tunesmith-if-room"
"""Sent where the peer was chosen for the room that it had a moment ago."""

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=2.0)
# An idle connection is given up before the peer's server does it (5 s), or a request could meet a closed one.
_KEEPALIVE_SECONDS = 2.0
# A peer whose machine is gone says nothing; the kernel finds out in so many seconds, tries and seconds between them.
_PROBES = (
    (socket.TCP_KEEPIDLE, 5),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_USER_TIMEOUT, 20_000),
)
_PATIENCE_SECONDS = 5.0
_HEALTH_SECONDS = 5.0
_HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
_OURS_TO_PEER = _HOP_BY_HOP | {"host", "content-length", "expect", "accept-encoding", "x-request-id", _CHOSEN, _IF_ROOM}
# This server's own HTTP layer writes them.
_OURS_TO_CLIENT = _HOP_BY_HOP | {"content-length", "date", "server"}


class Outcome(StrEnum):
    """What became of a request that was passed on."""

    ANSWERED = "answered"
    UNREACHABLE = "unreachable"
    LOST = "lost"
    OVERLOADED = "overloaded"
    BROKEN = "broken"
    """A stream that had begun, and counts as answered as well."""


class NotAnswered(Exception):
    """The peer gave no answer and the client has seen nothing; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.value)
        self.outcome = outcome


class Forwarding:
    """Asks other gateways; `count` is told the outcome of each try."""

    def __init__(
        self, http: aiohttp.ClientSession, peers: Peers, circuits: Circuits, count: Callable[[Outcome], None]
    ) -> None:
        self._http = http
        self._peers = peers
        self._circuits = circuits
        self._count = count

    async def ask(self, peer: Peer, request: Request, route: Route, body: bytes, servable: Servable) -> Response:
        """The peer's answer, of which nothing is lost any more or the first event is here; raises NotAnswered."""
        try:
            answer = await self._while_it_lives(peer, self._ask(peer, request, route, body, servable))
        except NotAnswered as failure:
            self._count(failure.outcome)
            if failure.outcome is not Outcome.OVERLOADED:
                _log.warning("gateway %s gave no answer: %s", peer.name, failure.outcome)
                self._circuits.failed(peer.address)
            raise
        self._circuits.worked(peer.address)
        self._count(Outcome.ANSWERED)
        return answer

    async def _while_it_lives(self, peer: Peer, answer: Coroutine[Any, Any, Response]) -> Response:
        """The answer; raises NotAnswered when the peer says nothing to another question either.

        An answer may take minutes, so that no limit of time tells one that works from one that hangs.
        """
        asking = asyncio.create_task(answer)
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=_PATIENCE_SECONDS)
                if not asking.done() and not await self._lives(peer) and not asking.done():
                    raise NotAnswered(Outcome.LOST)
            return asking.result()
        finally:
            asking.cancel()
            await asyncio.wait({asking})

    async def _lives(self, peer: Peer) -> bool:
        try:
            async with asyncio.timeout(_HEALTH_SECONDS), self._http.get(f"{peer.address}/health") as answer:
                await answer.read()
        except TimeoutError:
            return False
        except aiohttp.ClientError:
            # One that stops takes no connections and ends what it has begun. Where it has died, the answer breaks off.
            pass
        return True

    async def _ask(self, peer: Peer, request: Request, route: Route, body: bytes, servable: Servable) -> Response:
        headers = _without(request.headers.items(), _OURS_TO_PEER)
        headers |= {"x-request-id": request.state.request_id, _CHOSEN: quote(servable.name, safe=":/")}
        if peer.has_room and not peer.holds(servable.revision):
            headers[_IF_ROOM] = "1"
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._peers.passing(peer))
            try:
                answer = await self._http.post(peer.address + route, data=body, headers=headers, allow_redirects=False)
                stack.callback(answer.close)
                if answer.content_type == "text/event-stream":
                    events = await _begun(self._events(peer, route, answer))
                    return HeldStream(events, stack.pop_all(), answer.status, _to_client(answer))
                content = await answer.read()
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                raise NotAnswered(Outcome.UNREACHABLE) from error
            except (aiohttp.ClientError, EOFError) as error:
                raise NotAnswered(Outcome.LOST) from error
        if answer.status == 503 and _code(content) == "overloaded":
            raise NotAnswered(Outcome.OVERLOADED)
        return Response(content, answer.status, _to_client(answer))

    async def _events(self, peer: Peer, route: Route, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Whole events as they come. A peer that fails between two ends the stream with an error."""
        passed = 0
        try:
            async for events in _whole(answer):
                yield events
                passed += events.count(b"\n\n")
        except aiohttp.ClientError as error:
            if not passed:
                raise
            _log.error("gateway %s failed in a stream: %s", peer.name, type(error).__name__)
            self._circuits.failed(peer.address)
            self._count(Outcome.BROKEN)
            failed = engine_failed()
            if route is Route.RESPONSES:
                yield responses_stream.error_event(failed, passed)
            else:
                yield event(envelope(failed))


def peer_session() -> aiohttp.ClientSession:
    """The connections to other gateways; to be entered."""
    return aiohttp.ClientSession(
        timeout=_TIMEOUT,
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS, socket_factory=_probing),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


def chosen_model(request: Request) -> str | None:
    """The model that the gateway before this one has chosen; None where the request comes from a client."""
    sent = request.headers.get(_CHOSEN)
    return None if sent is None else unquote(sent)


def is_if_room(request: Request) -> bool:
    """Whether the gateway before this one knows others to ask if an engine would have to be stopped for the model."""
    return _IF_ROOM in request.headers


async def _begun(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same events, once there is a first one: until then another gateway can be asked. Raises EOFError for none."""
    try:
        first = await anext(events)
    except StopAsyncIteration:
        raise EOFError from None

    async def whole() -> AsyncIterator[bytes]:
        yield first
        async for more in events:
            yield more

    return whole()


async def _whole(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """What has come up to the end of an event: a client must not see half of one when the peer dies."""
    rest = b""
    async for part in answer.content.iter_any():
        events, mark, rest = (rest + part).rpartition(b"\n\n")
        if mark:
            yield events + mark


def _probing(address: Any) -> socket.socket:
    made = socket.socket(address[0], address[1], address[2])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBES:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _to_client(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return _without(answer.headers.items(), _OURS_TO_CLIENT)


def _without(headers: Iterable[tuple[str, str]], dropped: frozenset[str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers if name.lower() not in dropped}


def _code(content: bytes) -> object:
    try:
        return json.loads(content)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
