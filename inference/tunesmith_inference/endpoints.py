"""Owns the gateway's routes: from a request to the engine that answers it, and back.

It must not know how models are found, loaded or proven.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tunesmith_inference import responses
from tunesmith_inference.admission import Admission
from tunesmith_inference.assembly import noting_whole
from tunesmith_inference.auth import Authenticator, Principal
from tunesmith_inference.captures import MAX_CAPTURE_BYTES, CaptureLog, captured, wanted
from tunesmith_inference.config import Settings
from tunesmith_inference.engine_host import Target
from tunesmith_inference.errors import (
    GatewayError,
    embeddings_unsupported,
    engine_failed,
    model_loading,
    model_unservable,
    overloaded,
    tools_unsupported,
)
from tunesmith_inference.fleet import Fleet
from tunesmith_inference.forwarding import Forwarding, NotAnswered, Outcome, chosen_model, is_if_room
from tunesmith_inference.functions import with_function_calls, with_function_calls_in
from tunesmith_inference.model_metrics import ModelWatch
from tunesmith_inference.moderation import Moderation
from tunesmith_inference.peers import Peers
from tunesmith_inference.rate_limits import RateLimiter
from tunesmith_inference.registry_client import RegistryClient
from tunesmith_inference.request_body import InferenceRequest, Route, parse
from tunesmith_inference.responses_stream import response_events
from tunesmith_inference.revisions import NotFetched
from tunesmith_inference.router import Names, Servable, route
from tunesmith_inference.served_set import Unservable
from tunesmith_inference.streaming import HeldStream, public, relay
from tunesmith_inference.switch import Switch
from tunesmith_inference.usage import Usage
from tunesmith_inference.vllm import EngineLost, EngineUnavailable

T = TypeVar("T")

_RETRY_SECONDS = 0.2
_SALT = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True)
class Gateway:
    """What the routes work with."""

    settings: Settings
    authenticator: Authenticator
    registry: RegistryClient
    fleet: Fleet
    switch: Switch
    admission: Admission
    limits: RateLimiter
    usage: Usage
    moderation: Moderation
    captures: CaptureLog
    peers: Peers
    forwarding: Forwarding


@dataclass(frozen=True, slots=True)
class _Found:
    """The model that answers a request, where it does, and what measures it."""

    servable: Servable
    target: Target
    watch: ModelWatch


class ClientGone(Exception):
    """The client closed the connection; nobody is there to be answered."""


def router(gateway: Gateway) -> APIRouter:
    """The routes of one gateway."""
    routes = APIRouter()

    @routes.post(Route.CHAT)
    async def chat_completions(request: Request) -> Response:
        return await _infer(gateway, request, Route.CHAT)

    @routes.post(Route.COMPLETIONS)
    async def completions(request: Request) -> Response:
        return await _infer(gateway, request, Route.COMPLETIONS)

    @routes.post(Route.RESPONSES)
    async def responses_api(request: Request) -> Response:
        try:
            return await _infer(gateway, request, Route.RESPONSES)
        except GatewayError as error:
            raise responses.in_its_words(error) from None

    @routes.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        await gateway.authenticator.principal(request.headers.get("authorization"))
        raise embeddings_unsupported()

    @routes.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok", "engines": gateway.fleet.states(), "peers": gateway.peers.states()})

    @routes.get("/metrics")
    async def metrics() -> Response:
        gateway.usage.models.show(gateway.fleet.replicas())
        return Response(gateway.usage.exposition(), media_type="text/plain; version=0.0.4")

    return routes


async def _infer(gateway: Gateway, request: Request, path: Route) -> Response:
    principal = await gateway.authenticator.principal(request.headers.get("authorization"))
    request.state.answer_headers = dict(gateway.limits.admit(principal))
    body = await _body(request, gateway.settings.max_body_bytes)
    asked = parse(path, body)
    deadline = asyncio.get_running_loop().time() + gateway.settings.hold_seconds
    servable = await _unless_gone(request, _routed(gateway, request, asked, principal, deadline))
    if is_if_room(request) and not gateway.fleet.has_place(servable):
        raise overloaded()
    answer = None
    if chosen_model(request) is None and not gateway.fleet.holds(servable):
        answer = await _passed_on(gateway, request, path, body, servable)
    return answer or await _answer_here(gateway, request, asked, principal, servable, deadline)


async def _passed_on(
    gateway: Gateway, request: Request, path: Route, body: bytes, servable: Servable
) -> Response | None:
    """The answer of the gateway that has the model or is to have it; None where that is this one."""
    lost, failed = 0, set[str]()
    while (peer := gateway.peers.choose(servable, failed)) is not None:
        if gateway.peers.is_to_spread(servable):
            gateway.fleet.add(servable)
        try:
            asking = gateway.forwarding.ask(peer, request, path, body, servable)
            answer = await _unless_gone(request, asking)
        except NotAnswered as failure:
            failed.add(peer.address)
            # As with engines: what was under way in two gateways when they died may be what kills them.
            lost += failure.outcome is Outcome.LOST
            if lost > 1:
                raise engine_failed() from failure
        else:
            # The peer has told what is left of the key's limits there.
            request.state.answer_headers = {}
            return answer
    return None


async def _answer_here(
    gateway: Gateway,
    request: Request,
    asked: InferenceRequest,
    principal: Principal,
    servable: Servable,
    deadline: float,
) -> Response:
    request.state.model = servable.name
    await _unless_gone(request, gateway.moderation.check_prompt(asked))
    lost = 0
    while True:
        async with contextlib.AsyncExitStack() as stack:
            found = await _unless_gone(request, _found(gateway, servable, stack, deadline))
            try:
                return await _answer(gateway, request, asked, principal, found, stack)
            except EngineUnavailable as error:
                # The client has seen nothing yet, so the engine that takes its place may answer. A request that was
                # under way in two engines when they died may be what kills them.
                lost += isinstance(error, EngineLost)
                if lost > 1:
                    raise engine_failed() from error
                if asyncio.get_running_loop().time() > deadline:
                    raise model_loading() from error
                gateway.fleet.look()
                await asyncio.sleep(_RETRY_SECONDS)


async def _answer(
    gateway: Gateway,
    request: Request,
    asked: InferenceRequest,
    principal: Principal,
    found: _Found,
    stack: contextlib.AsyncExitStack,
) -> Response:
    target = found.target
    if found.servable.name != asked.model:
        request.state.answer_headers["x-tunesmith-model"] = quote(found.servable.name, safe=":/")
    if asked.tools_at is not None and not target.takes_tools:
        raise tools_unsupported(asked.tools_at)
    body = _engine_body(asked, target, principal)
    meter = partial(gateway.usage.count_tokens, principal, found.servable.name)
    response = asked.response_to and responses.begun(asked.response_to, f"resp_{secrets.token_hex(16)}", time.time())
    note = partial(_keep, gateway, principal, asked, request.state.request_id, response["id"] if response else None)
    if asked.stream:
        stream = await _unless_gone(request, stack.enter_async_context(target.client.stream(asked.route, body)))
        checked = gateway.moderation.guarded(found.watch.noting_first(stream))
        chunks = await _unless_gone(request, _begun(checked))
        if wanted(principal, asked):
            chunks = noting_whole(chunks, note, MAX_CAPTURE_BYTES)
        if response:
            return HeldStream(response_events(chunks, response, meter), stack.pop_all())
        if asked.functions:
            chunks = with_function_calls_in(chunks)
        answers = asked.parameters.get("n", 1)
        return HeldStream(relay(chunks, asked.model, asked.usage_wanted, meter, answers), stack.pop_all())
    answer = await _unless_gone(request, target.client.answer(asked.route, body))
    meter(answer.get("usage") or {})
    answer = await _unless_gone(request, gateway.moderation.checked(answer))
    if wanted(principal, asked):
        note(answer)
    if asked.functions:
        answer = with_function_calls(answer)
    return JSONResponse(responses.answered(response, answer) if response else public(answer, asked.model))


def _keep(
    gateway: Gateway,
    principal: Principal,
    asked: InferenceRequest,
    request_id: str,
    response_id: str | None,
    answer: dict[str, Any],
) -> None:
    # Under the id that the client was told.
    capture = captured(principal, asked, request_id, {**answer, "id": response_id or answer["id"]})
    if capture is not None:
        gateway.captures.add(capture)


async def _begun(chunks: AsyncIterator[T]) -> AsyncIterator[T]:
    """The same chunks, once there is a first one: what goes wrong until then, no client need see."""
    try:
        first = [await anext(chunks)]
    except StopAsyncIteration:
        first = []

    async def whole() -> AsyncIterator[T]:
        for chunk in first:
            yield chunk
        async for chunk in chunks:
            yield chunk

    return whole()


async def _body(request: Request, limit: int) -> bytes:
    if request.headers.get("content-encoding", "identity") != "identity":
        message = "The body is compressed. Send it as it is, without `Content-Encoding`."
        raise GatewayError(415, "unsupported_content_encoding", message)
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise GatewayError(413, "request_too_large", f"The body is larger than {limit} bytes. Send less at once.")
    return bytes(content)


async def _found(gateway: Gateway, servable: Servable, stack: contextlib.AsyncExitStack, deadline: float) -> _Found:
    """What answers the request and what measures it, held in `stack`.

    Waits for engine and model until `deadline` on the loop's clock.
    """
    try:
        async with asyncio.timeout_at(deadline):
            stack.enter_context(gateway.admission.admit(servable.name))
            watch = stack.enter_context(gateway.usage.models.watch(servable.name))
            target = await stack.enter_async_context(gateway.fleet.lease(servable))
            watch.found()
            return _Found(servable, target, watch)
    except (TimeoutError, NotFetched):
        raise model_loading() from None
    except Unservable:
        raise model_unservable() from None


async def _routed(
    gateway: Gateway, request: Request, asked: InferenceRequest, principal: Principal, deadline: float
) -> Servable:
    """The model that answers, as the gateway before this one has chosen it, if there was one."""
    chosen = chosen_model(request)

    def model_of(names: Names) -> Servable:
        if chosen is not None:
            return route(names.models, chosen, principal.project_id)
        return gateway.switch.route(names, asked.model, principal.project_id, asked.end_user)

    try:
        async with asyncio.timeout_at(deadline):
            try:
                return model_of(await gateway.registry.known())
            except GatewayError:
                return model_of(await gateway.registry.current())
    except TimeoutError:
        raise model_loading() from None


def _engine_body(asked: InferenceRequest, target: Target, principal: Principal) -> dict[str, Any]:
    body = {**asked.parameters, "model": target.model}
    if target.frame is not None and asked.route is Route.COMPLETIONS:
        body = target.frame.around(body)
    # Projects share no cached prefix, or the time to an answer would tell one what another has asked.
    body["cache_salt"] = hashlib.sha256(_SALT + principal.project_id.encode()).hexdigest()
    if asked.stream:
        # With every chunk, so that who leaves before the end has used what was made for them.
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return body


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; cancels it and raises ClientGone when the client closes the connection."""
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        gone.cancel()
        working.cancel()
        await asyncio.wait({working, gone})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
