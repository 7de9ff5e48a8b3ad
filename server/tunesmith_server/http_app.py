"""Owns the REST transport: one FastAPI app out of every domain's router, with one shape of error for everything.

It must not know a domain; routers and services come from application.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from tunesmith_server.auth import Authenticator
from tunesmith_server.config import MEBIBYTE, Settings
from tunesmith_server.core import Core
from tunesmith_server.error_rendering import from_validation, http_response
from tunesmith_server.errors import (
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    TunesmithError,
)
from tunesmith_server.telemetry import RequestTelemetry

_log = logging.getLogger(__name__)


def create_http_app(
    core: Core,
    authenticator: Authenticator,
    routers: Sequence[APIRouter],
    lifespan: Lifespan[FastAPI] | None = None,
) -> FastAPI:
    """The ASGI app. Services raise TunesmithError; this app turns it into OpenAI's error envelope."""
    app = FastAPI(
        title="Tunesmith",
        docs_url=None,  # the page would load scripts from a public host
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.authenticator = authenticator
    app.include_router(_operations_router(core))
    for router in routers:
        app.include_router(router)
    app.exception_handler(TunesmithError)(_answer_error)
    app.exception_handler(RequestValidationError)(_answer_validation)
    app.exception_handler(HTTPException)(_answer_http_exception)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, settings=core.settings)
    app.add_middleware(RequestTelemetry)
    return app


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
        message = f"The file may have at most {settings.max_upload_bytes} bytes. Split it into several files."
        return settings.max_upload_bytes + MEBIBYTE, PayloadTooLargeError("file_too_large", message, param="file")
    message = f"The body may have at most {settings.max_body_bytes} bytes. Send less in one request."
    return settings.max_body_bytes, PayloadTooLargeError("body_too_large", message)


async def _answer_error(_request: Request, error: TunesmithError) -> Response:
    return http_response(error)


async def _answer_validation(_request: Request, error: RequestValidationError) -> Response:
    return http_response(from_validation(error.errors(), error.body))


async def _answer_http_exception(request: Request, error: HTTPException) -> Response:
    if isinstance(error, _BodyTooLarge):
        return http_response(error.error)
    if error.status_code == 404:
        message = f"There is no {request.method} {request.url.path}. Check the path; API routes start with /v1."
        return http_response(NotFoundError("unknown_url", message))
    if error.status_code == 405:
        message = f"{request.url.path} does not answer {request.method}."
        response = http_response(InvalidRequestError("method_not_allowed", message))
        response.status_code = 405
        response.headers.update(error.headers or {})
        return response
    is_json = "json" in request.headers.get("content-type", "")
    code, message = (
        ("invalid_json", "The body is not valid JSON.") if is_json else ("invalid_body", "The body cannot be read.")
    )
    return http_response(InvalidRequestError(code, message))


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
        content: Any = generate_latest()
        return Response(content, media_type=CONTENT_TYPE_LATEST)

    return router
