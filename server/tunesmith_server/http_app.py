"""Owns the REST transport: one FastAPI app out of every domain's router, with one shape of error for everything.

It must not know a domain; routers and services come from application.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from tunesmith_server import gauges, openapi_document
from tunesmith_server.auth import Authenticator
from tunesmith_server.calls import RecordCall, current_call, unrecorded
from tunesmith_server.config import MEBIBYTE, Settings
from tunesmith_server.core import Core
from tunesmith_server.error_rendering import from_validation, http_response
from tunesmith_server.errors import (
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    TunesmithError,
)
from tunesmith_server.http_auth import CallMiddleware
from tunesmith_server.telemetry import RequestTelemetry

_PART_PATH = re.compile(r"/v1/uploads/[^/]+/parts")

_log = logging.getLogger(__name__)


def create_http_app(
    core: Core,
    authenticator: Authenticator,
    routers: Sequence[APIRouter],
    lifespan: Lifespan[FastAPI] | None = None,
    record: RecordCall = unrecorded,
) -> FastAPI:
    """The ASGI app. Services raise TunesmithError; this app turns it into OpenAI's error envelope.

    `record` hears of every call.
    """
    app = FastAPI(
        title="Tunesmith",
        docs_url=None,  # the page would load scripts from a public host
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.openapi = lambda: openapi_document.describe(app)  # type: ignore[method-assign]  # as FastAPI's manual has it
    app.state.authenticator = authenticator
    app.include_router(_operations_router(core))
    for router in routers:
        app.include_router(router)
    app.exception_handler(TunesmithError)(_answer_error)
    app.exception_handler(RequestValidationError)(_answer_validation)
    app.exception_handler(HTTPException)(_answer_http_exception)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, settings=core.settings)
    app.add_middleware(CallMiddleware, record=record)
    app.add_middleware(PagesMayAsk)
    app.add_middleware(RequestTelemetry)
    return app


class PagesMayAsk:
    """ASGI middleware that lets web pages of any origin use /v1, as OpenAI's own API does.

    A page has to bring a key, browsers add none. The rest is not for pages: operators' routes ask for no key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        everything = ["*"]
        self._open = CORSMiddleware(
            app, allow_origins=everything, allow_methods=everything, allow_headers=everything, expose_headers=everything
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection as ASGI asks."""
        is_public = scope["type"] == "http" and scope["path"].startswith("/v1/")
        await (self._open if is_public else self._app)(scope, receive, send)


class BodyLimit:
    """ASGI middleware that refuses a body over the limit of its route while it arrives, chunked ones too."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection as ASGI asks."""
        error = _body_limit(scope, self._settings) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
            return
        limit, refusal = error
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            await http_response(refusal)(scope, receive, send)
            return
        received = 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _BodyTooLarge(refusal)
            return message

        await self._app(scope, counting, send)


class _BodyTooLarge(HTTPException):
    """Passes through the framework's body parsing, which replaces every other kind of exception."""

    def __init__(self, error: PayloadTooLargeError) -> None:
        super().__init__(status_code=413)
        self.error = error


def _body_limit(scope: Scope, settings: Settings) -> tuple[int, PayloadTooLargeError] | None:
    """Bytes that the request's body may have and what to say beyond; None where the route itself enforces a size."""
    if scope["path"].startswith("/internal/objects/"):
        return None
    if scope["path"] == "/v1/files":
        # The rest of a multipart body is small beside the file; the service checks the file's exact size.
        message = (
            f"The file may have at most {settings.max_upload_bytes} bytes. "
            "Send a larger one in parts by /v1/uploads, or split it."
        )
        return settings.max_upload_bytes + MEBIBYTE, PayloadTooLargeError("file_too_large", message, param="file")
    if _PART_PATH.fullmatch(scope["path"]):
        message = f"A part may have at most {settings.max_part_bytes} bytes. Send more and smaller parts."
        return settings.max_part_bytes + MEBIBYTE, PayloadTooLargeError("part_too_large", message, param="data")
    message = f"The body may have at most {settings.max_body_bytes} bytes. Send less in one request."
    return settings.max_body_bytes, PayloadTooLargeError("body_too_large", message)


async def _answer_error(_request: Request, error: TunesmithError) -> Response:
    return _refusal(error)


async def _answer_validation(_request: Request, error: RequestValidationError) -> Response:
    return _refusal(from_validation(error.errors(), error.body))


async def _answer_http_exception(request: Request, error: HTTPException) -> Response:
    if isinstance(error, _BodyTooLarge):
        return _refusal(error.error)
    if error.status_code == 404:
        message = f"There is no {request.method} {request.url.path}. Check the path; API routes start with /v1."
        return _refusal(NotFoundError("unknown_url", message))
    if error.status_code == 405:
        message = f"{request.url.path} does not answer {request.method}."
        response = _refusal(InvalidRequestError("method_not_allowed", message))
        response.status_code = 405
        # The framework names the methods of the first route only.
        methods = openapi_document.methods_at(request.app, request.url.path)
        response.headers.update({"allow": ", ".join(methods)} if methods else error.headers or {})
        return response
    is_json = "json" in request.headers.get("content-type", "")
    code, message = (
        ("invalid_json", "The body is not valid JSON.") if is_json else ("invalid_body", "The body cannot be read.")
    )
    return _refusal(InvalidRequestError(code, message))


def _refusal(error: TunesmithError) -> Response:
    call = current_call()
    if call is not None:
        call.outcome = error.code
    return http_response(error)


def _operations_router(core: Core) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/health")
    async def health() -> Response:
        try:
            async with core.database.read() as session:
                await session.execute(text("SELECT 1"))
        except (SQLAlchemyError, OSError) as error:
            _log.warning("the database cannot be reached", exc_info=error)
            return JSONResponse({"status": "unavailable"}, status_code=503)
        return JSONResponse({"status": "ok"})

    @router.get("/metrics")
    async def metrics() -> Response:
        try:
            await gauges.refresh(core)
        except (SQLAlchemyError, OSError) as error:
            _log.warning("the database cannot be reached; its gauges keep their last values", exc_info=error)
        content: Any = generate_latest()
        return Response(content, media_type=CONTENT_TYPE_LATEST)

    return router
