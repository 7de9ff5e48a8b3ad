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

from tunesmith_server.audit.targets import id_in
from tunesmith_server.calls import ABORTED, OK, Call, RecordCall, enter, unrecorded
from tunesmith_server.config import MEBIBYTE
from tunesmith_server.error_rendering import grpc_status, rendering_of
from tunesmith_server.errors import TunesmithError
from tunesmith_server.projects.scopes import creates
from tunesmith_server.telemetry import choose_request_id, log_fields, record_call, unexpected
from tunesmith_server.tracing import call_span, name_span

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
_OUR_FAULT = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE})
_REFLECTION_NAMES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)


def create_grpc_server(services: Mapping[str, Register], record: RecordCall = unrecorded) -> GrpcServer:
    """A server of the named services (full protobuf names), not started yet. `record` hears of every call."""
    return GrpcServer(services, record)


class GrpcServer:
    """The gRPC server with its health service."""

    def __init__(self, services: Mapping[str, Register], record: RecordCall) -> None:
        self._server = grpc.aio.server(interceptors=(CallInterceptor(record),), options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        self.services = tuple(services)
        """Full names of the services of ours."""
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
        for name in (health.OVERALL_HEALTH, *self.services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace_seconds: float) -> None:
        """Reports NOT_SERVING, takes no new calls, waits for those under way and cuts them off after the grace."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)

    def _add_reflection(self) -> None:
        names = (*self.services, health.SERVICE_NAME, *_REFLECTION_NAMES)
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


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Turns what our servicers raise into a status, and times, logs, counts and records each call."""

    def __init__(self, record: RecordCall) -> None:
        self._record = record

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
            wrap(getattr(method, kind), name, self._record),
            request_deserializer=method.request_deserializer,
            response_serializer=method.response_serializer,
        )
        return wrapped


def _wrap_unary(
    behaviour: Callable[[Any, Any], Awaitable[Any]], name: str, record: RecordCall
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        watch = _Watch(name, request, context)
        with call_span("grpc", watch.metadata, watch.request_id) as span, log_fields(request_id=watch.request_id):
            try:
                return watch.answered(await behaviour(request, context))
            except Exception as error:  # every error gets an answer here
                await watch.abort(error)
            finally:
                name_span(span, name, watch.status, failed=watch.failed)
                watch.end(record)

    return call


def _wrap_stream(
    behaviour: Callable[[Any, Any], AsyncIterator[Any]], name: str, record: RecordCall
) -> Callable[[Any, Any], Any]:
    # No span: a stream may stay open for days.
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        watch = _Watch(name, request, context)
        try:
            async for answer in behaviour(request, context):
                yield answer
            watch.answered(None)
        except Exception as error:  # every error gets an answer here
            await watch.abort(error)
        finally:
            watch.end(record)

    return call


class _Watch:
    """Follows one call from its request to its status."""

    def __init__(self, name: str, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        sent = context.invocation_metadata() or ()
        self.metadata = {key: value for key, value in sent if isinstance(value, str)}
        self.request_id = choose_request_id(self.metadata.get("x-request-id"))
        self._name = name
        self._context = context
        self._started = time.perf_counter()
        self._status = grpc.StatusCode.OK
        self._call = Call(self.request_id, operation=name, target_id=id_in(request), outcome=ABORTED)
        # Never left: the task answers this call and ends.
        enter(self._call)

    @property
    def status(self) -> str:
        """The word of the answer's status."""
        return self._status.name.lower()

    @property
    def failed(self) -> bool:
        """Whether the fault was ours."""
        return self._status in _OUR_FAULT

    def answered(self, answer: Any) -> Any:
        """The answer, after a look at the id of what it created; None at the end of a stream."""
        self._call.outcome = OK
        if creates(self._name):
            self._call.target_id = id_in(answer)
        return answer

    async def abort(self, error: Exception) -> None:
        """Ends the call with the status of the error; always raises."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if not isinstance(error, TunesmithError):
            error = unexpected(error, self._name, self.request_id)
        self._status = rendering_of(error).grpc_code
        self._call.outcome = error.code
        status = grpc_status(error)
        await self._context.abort(
            self._status,
            status.message,
            (("x-request-id", self.request_id), ("grpc-status-details-bin", status.SerializeToString())),
        )

    def end(self, record: RecordCall) -> None:
        """Counts, logs and records the call."""
        record_call("grpc", self._name, self.status, time.perf_counter() - self._started, self.request_id)
        record(self._call)
