"""Owns the gRPC transport: one server out of every domain's servicer, with health, reflection and one shape of error.

It must not know a domain; servicers come from application.py.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tunesmith_server.config import MEBIBYTE
from tunesmith_server.error_rendering import grpc_status, rendering_of
from tunesmith_server.errors import TunesmithError
from tunesmith_server.telemetry import choose_request_id, record_call, unexpected

Register = Callable[[grpc.aio.Server], None]
"""Adds one servicer to a server: the generated `add_…Servicer_to_server` with its servicer bound."""

_MAX_MESSAGE_BYTES = 16 * MEBIBYTE
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # Without this a second server on the same port would silently take half of the calls.
    ("grpc.so_reuseport", 0),
    # Trainers and gateways keep idle connections alive by pings; the default would cut them off for it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
_REFLECTION_NAMES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)


def create_grpc_server(services: Mapping[str, Register]) -> GrpcServer:
    """A server of the named services (full protobuf names), not started yet."""
    return GrpcServer(services)


class GrpcServer:
    """The gRPC server with its health service."""

    def __init__(self, services: Mapping[str, Register]) -> None:
        self._server = grpc.aio.server(interceptors=(ErrorInterceptor(),), options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        self._services = tuple(services)
        for register in services.values():
            register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._add_reflection()

    async def start(self, address: str) -> int:
        """Listens on host:port (port 0: any free one), reports SERVING and returns the port; OSError when taken."""
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address}; is the port taken?") from error
        await self._server.start()
        for name in (health.OVERALL_HEALTH, *self._services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace_seconds: float) -> None:
        """Reports NOT_SERVING, takes no new calls, waits for those under way and cuts them off after the grace."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)

    def _add_reflection(self) -> None:
        names = (*self._services, health.SERVICE_NAME, *_REFLECTION_NAMES)
        servicer = reflection.aio.ReflectionServicer(names)
        # The library knows v1alpha only; v1 has the same messages under another name.
        method = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        for name in _REFLECTION_NAMES:
            routes = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
            self._server.add_generic_rpc_handlers((routes,))


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what our servicers raise into a status, and times, logs and counts each call."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the methods of our own services; health and reflection stay as they are."""
        method = await continuation(handler_call_details)
        name = handler_call_details.method
        if method is None or not name.startswith("/tunesmith."):
            return method
        kind = ("stream_" if method.request_streaming else "unary_") + (
            "stream" if method.response_streaming else "unary"
        )
        wrap = _wrap_stream if method.response_streaming else _wrap_unary
        factory = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: grpc.RpcMethodHandler[Any, Any] = factory(
            wrap(getattr(method, kind), name),
            request_deserializer=method.request_deserializer,
            response_serializer=method.response_serializer,
        )
        return wrapped


def _wrap_unary(behaviour: Callable[[Any, Any], Awaitable[Any]], name: str) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        watch = _Call(name, context)
        try:
            return await behaviour(request, context)
        except Exception as error:  # every error gets an answer here
            await watch.abort(error)
        finally:
            watch.record()

    return call


def _wrap_stream(behaviour: Callable[[Any, Any], AsyncIterator[Any]], name: str) -> Callable[[Any, Any], Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        watch = _Call(name, context)
        try:
            async for answer in behaviour(request, context):
                yield answer
        except Exception as error:  # every error gets an answer here
            await watch.abort(error)
        finally:
            watch.record()

    return call


class _Call:
    """One call under way."""

    def __init__(self, name: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        metadata = dict(context.invocation_metadata() or ())
        sent = metadata.get("x-request-id")
        self._name = name
        self._context = context
        self._request_id = choose_request_id(sent if isinstance(sent, str) else None)
        self._started = time.perf_counter()
        self._status = grpc.StatusCode.OK

    async def abort(self, error: Exception) -> None:
        """Ends the call with the status of the error; always raises."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if not isinstance(error, TunesmithError):
            error = unexpected(error, self._name, self._request_id)
        self._status = rendering_of(error).grpc_code
        status = grpc_status(error)
        await self._context.abort(
            self._status,
            status.message,
            (("x-request-id", self._request_id), ("grpc-status-details-bin", status.SerializeToString())),
        )

    def record(self) -> None:
        status = self._status.name.lower()
        record_call("grpc", self._name, status, time.perf_counter() - self._started, self._request_id)
