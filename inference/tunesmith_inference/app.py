"""Owns the gateway as an ASGI application: its parts, their life, request ids, errors as answers.

It must not know what a route does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith_inference.admission import Admission
from tunesmith_inference.auth import Authenticator
from tunesmith_inference.captures import CaptureLog
from tunesmith_inference.circuits import Circuits
from tunesmith_inference.config import Settings
from tunesmith_inference.endpoints import ClientGone, Gateway, router
from tunesmith_inference.engine import vllm_command
from tunesmith_inference.engine_host import Command
from tunesmith_inference.errors import GatewayError, error_response, internal_error
from tunesmith_inference.fleet import Fleet
from tunesmith_inference.forwarding import Forwarding, peer_session
from tunesmith_inference.hooks import Hook
from tunesmith_inference.ledger import Ledger
from tunesmith_inference.moderation import Moderation
from tunesmith_inference.peers import Peers
from tunesmith_inference.placement import Peer
from tunesmith_inference.rate_limits import RateLimiter
from tunesmith_inference.redaction import Redactor, load_rules
from tunesmith_inference.registry_client import connect
from tunesmith_inference.replicas import COMING, Aged, ReplicaReports, ReplicaState
from tunesmith_inference.revisions import RevisionCache
from tunesmith_inference.router import Servable
from tunesmith_inference.switch import Switch
from tunesmith_inference.usage import Usage

_log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CLIENT_GONE_STATUS = 499


@contextlib.asynccontextmanager
async def serving(settings: Settings, command: Command = vllm_command) -> AsyncIterator[FastAPI]:
    """A gateway that follows its control plane; its engines end with the block. `command` starts an engine."""
    rules = load_rules(settings.redaction_rules)
    async with (
        connect(settings.control_plane, settings.service_token.get_secret_value()) as registry,
        _hook(settings.moderation_url, settings.moderation_api_key, settings) as moderation_hook,
        _hook(settings.redaction_url, settings.redaction_api_key, settings) as redaction_hook,
        peer_session() as http,
    ):
        limits, ledger = RateLimiter(), Ledger(registry.report_usage)
        usage = Usage(limits, ledger)
        revisions = RevisionCache(settings.cache_dir, registry.revision_files)
        admission, circuits = Admission(settings.max_requests), Circuits()
        peers = Peers(lambda: _here(settings, fleet, admission), circuits, alone=not settings.gateway_address)
        fleet = Fleet(settings, revisions, command, usage.models.count_load, peers.elsewhere)
        redactor = Redactor(rules, redaction_hook)
        captures = CaptureLog(redactor.redacted, registry.report_captures, usage.count_captures)
        gateway = Gateway(
            settings,
            Authenticator(registry.authenticate),
            registry,
            fleet,
            Switch(lambda servable: peers.is_ready(servable, is_ready_here=fleet.is_ready(servable))),
            admission,
            limits,
            usage,
            _moderation(settings, moderation_hook, usage),
            captures,
            peers,
            Forwarding(http, peers, circuits, usage.count_forwarded),
        )
        reports = ReplicaReports(fleet.replicas, partial(_report, gateway), sharing=bool(settings.gateway_address))
        following = registry.follow(partial(_follow, gateway))
        async with _running(following, fleet.run(), ledger.run(), captures.run()):
            async with _running(reports.run()):
                yield create_app(gateway)
            # Before the engines end, which takes its time: until then others would ask for what they hold.
            peers.leave()
            await reports.close()
        await asyncio.gather(ledger.close(), captures.close())


@contextlib.asynccontextmanager
async def _running(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = {asyncio.create_task(work) for work in works}
    for task in tasks:
        task.add_done_callback(_end_if_broken)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _end_if_broken(work: asyncio.Task[None]) -> None:
    """Ends the process, to be started anew, where one of its works has failed: it would answer nothing right."""
    error = None if work.cancelled() else work.exception()
    if error is not None:
        _log.critical("the gateway ends: one of its works has failed", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


@contextlib.asynccontextmanager
async def _hook(url: str, api_key: SecretStr, settings: Settings) -> AsyncIterator[Hook | None]:
    if not url:
        yield None
        return
    async with Hook(url, api_key.get_secret_value(), settings.hook_seconds) as hook:
        yield hook


def _moderation(settings: Settings, hook: Hook | None, usage: Usage) -> Moderation:
    return Moderation(
        hook,
        model=settings.moderation_model,
        fails_open=settings.moderation_fails_open,
        every=settings.moderation_stream_characters,
        count=usage.count_moderation,
    )


def _follow(gateway: Gateway) -> None:
    """Has every part know the names that exist now."""
    names = gateway.registry.names
    pinned: list[Servable] = []
    others: list[Servable] = []
    for deployment in names.deployments.values():
        (pinned if deployment.pinned else others).extend(model for model, _ in names.behind(deployment))
    gateway.fleet.follow(names.models.values(), deployed=pinned + others, pinned=pinned)
    gateway.switch.follow(names)
    gateway.usage.models.keep_only(names.models)


async def _report(gateway: Gateway, replicas: Sequence[Aged]) -> None:
    """Tells what engines hold, and takes what others do."""
    if gateway.peers.follow(await gateway.registry.report_replicas(replicas, gateway.peers.presence())):
        gateway.fleet.look()


def _here(settings: Settings, fleet: Fleet, admission: Admission) -> Peer:
    """This gateway as others see it."""
    replicas = fleet.replicas()
    return Peer(
        # Other than the address it outlives a restart in a cluster, and with it what lies on its volume.
        name=f"{socket.gethostname()}:{settings.gateway_port}",
        address=settings.gateway_address.rstrip("/"),
        in_flight=admission.under_way,
        has_room=fleet.has_room,
        ready=frozenset(replica.revision for replica in replicas if replica.state is ReplicaState.READY),
        coming=frozenset(replica.revision for replica in replicas if replica.state in COMING),
        on_demand=frozenset(model.revision for model in fleet.on_demand()),
    )


def create_app(gateway: Gateway) -> FastAPI:
    """The routes of a gateway whose parts run already; `state.leave` is to be called when it is told to stop."""
    app = FastAPI(title="Tunesmith gateway", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router(gateway))
    app.state.leave = gateway.peers.leave
    app.add_exception_handler(GatewayError, partial(_answer_error, gateway.usage))
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ClientGone, _answer_nobody)
    app.add_middleware(_Accounts, usage=gateway.usage)
    return app


async def _answer_error(usage: Usage, request: Request, error: Exception) -> Response:
    if not isinstance(error, GatewayError):
        raise error
    usage.models.count_error(getattr(request.state, "model", ""), error.code)
    return error_response(error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route, wrong method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
    message = (
        "There is no such route here. Inference is at /v1/chat/completions, /v1/completions, /v1/responses, with POST."
    )
    return error_response(GatewayError(status, code, message))


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE_STATUS)


class _Accounts:
    """Outermost middleware: gives every request an id, counts and times it, answers defects of ours."""

    def __init__(self, app: ASGIApp, usage: Usage) -> None:
        self._app = app
        self._usage = usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection as ASGI asks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = "aborted"

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                headers = MutableHeaders(scope=message)
                headers.update(scope.get("state", {}).get("answer_headers", {}))
                headers["x-request-id"] = request_id
                headers["openai-version"] = "2020-10-01"
                headers["openai-processing-ms"] = str(round((time.perf_counter() - began) * 1000))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            _log.exception("request %s failed", request_id)
            if status != "aborted":
                # Part of an answer is out; only a broken connection tells the client that it is not whole.
                raise
            await error_response(internal_error())(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._usage.count_request(route, status, time.perf_counter() - began)
