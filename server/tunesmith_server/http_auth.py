"""Owns how a REST request becomes a call with a caller: one middleware around all routes, one dependency in each.

It must not know how keys are stored or what is written down of a call; auth.py decides the one, audit/ the other.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith_server.audit.targets import id_in_json
from tunesmith_server.auth import Authenticator, Principal
from tunesmith_server.calls import ABORTED, OK, Call, RecordCall, current_call, entered
from tunesmith_server.projects.scopes import creates
from tunesmith_server.telemetry import current_request_id


async def current_principal(request: Request) -> Principal:
    """The caller of a public route; raises what Authenticator.principal raises."""
    call = current_call()
    if call is not None:
        call.operation = f"{request.method} {request.scope['route'].path_format}"
        call.target_id = next(reversed(request.path_params.values()), None)
    authenticator: Authenticator = request.app.state.authenticator
    return await authenticator.principal(request.headers.get("authorization"))


CurrentPrincipal = Annotated[Principal, Depends(current_principal)]
"""Type of a route parameter that receives the caller."""


class CallMiddleware:
    """ASGI middleware that makes each request a call, adds the headers of its rate and has it recorded."""

    def __init__(self, app: ASGIApp, record: RecordCall) -> None:
        self._app = app
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection as ASGI asks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(current_request_id(), outcome=ABORTED)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.outcome = OK if call.outcome == ABORTED else call.outcome
                MutableHeaders(scope=message).update(_headers(call))
            if message["type"] == "http.response.body" and creates(call.operation):
                call.target_id = id_in_json(message.get("body", b"")) or call.target_id
            await send(message)

        with entered(call):
            try:
                await self._app(scope, receive, sending)
            except ClientDisconnect:
                raise
            except Exception:
                call.outcome = "internal_error"
                raise
            finally:
                self._record(call)


def _headers(call: Call) -> dict[str, str]:
    """What OpenAI's clients read beside the body: whose call it was, and what is left of the rate."""
    owner = {} if call.project_id is None else {"openai-organization": call.project_id}
    return owner | (call.allowance.headers if call.allowance is not None else {})
