"""One shape of error over gRPC, health that follows the server's life, reflection for tools."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from tunesmith_proto.files.v1 import files_pb2, files_pb2_grpc
from tunesmith_server.auth import authorization_of
from tunesmith_server.errors import FencedError, UnavailableError
from tunesmith_server.grpc_app import GrpcServer, create_grpc_server

NAME = "tunesmith.files.v1.FilesService"
Context = grpc.aio.ServicerContext[Any, Any]


class Misbehaving(files_pb2_grpc.FilesServiceServicer):
    """Fails in the ways that a servicer can fail, by the id in the request."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def GetFile(  # noqa: N802
        self, request: files_pb2.GetFileRequest, context: Context
    ) -> files_pb2.GetFileResponse:
        """Answers with the caller's authorization or fails."""
        if request.id == "fenced":
            raise FencedError
        if request.id == "busy":
            raise UnavailableError("busy", "Later – ünder load.", retry_after=3)
        if request.id == "defect":
            raise ValueError("a secret of the inside")
        if request.id == "aborts":
            await context.abort(grpc.StatusCode.DATA_LOSS, "its own")
        return files_pb2.GetFileResponse(file=files_pb2.File(filename=authorization_of(context) or ""))

    async def DownloadFile(  # noqa: N802
        self, request: files_pb2.DownloadFileRequest, context: Context
    ) -> AsyncIterator[files_pb2.DownloadFileResponse]:
        """Streams one chunk and then fails or waits."""
        yield files_pb2.DownloadFileResponse(chunk=b"first")
        if request.id == "fenced":
            raise FencedError
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


class Running:
    """A started server with a channel to it."""

    def __init__(self, server: GrpcServer, port: int, channel: grpc.aio.Channel, servicer: Misbehaving) -> None:
        self.server, self.port, self.channel, self.servicer = server, port, channel, servicer
        self.files = files_pb2_grpc.FilesServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    async def fail(self, file_id: str) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.files.GetFile(files_pb2.GetFileRequest(id=file_id))
        return raised.value


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    servicer = Misbehaving()  # type: ignore[abstract]  # no test calls the other methods
    server = create_grpc_server({NAME: partial(files_pb2_grpc.add_FilesServiceServicer_to_server, servicer)})
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Running(server, port, channel, servicer)
    await server.stop(0)


def reason(error: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    assert status is not None
    assert status.details[0].Unpack(info)
    return str(info.reason)


async def test_errors_become_statuses_with_reasons(running: Running) -> None:
    fenced = await running.fail("fenced")
    assert (fenced.code(), reason(fenced)) == (grpc.StatusCode.FAILED_PRECONDITION, "fenced")
    busy = await running.fail("busy")
    assert (busy.code(), reason(busy)) == (grpc.StatusCode.UNAVAILABLE, "busy")
    assert busy.details() == "Later – ünder load."


async def test_a_defect_shows_its_id_and_nothing_else(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    error = await running.fail("defect")
    request_id = dict(error.trailing_metadata())["x-request-id"]
    assert (error.code(), reason(error)) == (grpc.StatusCode.INTERNAL, "internal_error")
    assert str(request_id) in str(error.details())
    assert "secret" not in str(error.details())
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.__dict__["fields"]["request_id"] == request_id


async def test_a_status_that_a_servicer_sets_itself_stays(running: Running) -> None:
    error = await running.fail("aborts")
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "its own")


async def test_a_method_that_is_not_there(running: Running) -> None:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = running.channel.unary_unary(f"/{NAME}/None")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await method(b"")
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_an_error_in_the_middle_of_a_stream(running: Running) -> None:
    call = running.files.DownloadFile(files_pb2.DownloadFileRequest(id="fenced"))
    assert await call.read() == files_pb2.DownloadFileResponse(chunk=b"first")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert reason(raised.value) == "fenced"


async def test_a_stream_ends_with_its_reader(running: Running) -> None:
    call = running.files.DownloadFile(files_pb2.DownloadFileRequest())
    await call.read()
    call.cancel()
    await asyncio.wait_for(running.servicer.cancelled.wait(), 5)


async def test_authorization_is_read_from_metadata(running: Running) -> None:
    answer = await running.files.GetFile(files_pb2.GetFileRequest(), metadata=(("authorization", "Bearer x"),))
    assert answer.file.filename == "Bearer x"
    assert (await running.files.GetFile(files_pb2.GetFileRequest())).file.filename == ""


async def test_keys_are_not_logged(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await running.files.GetFile(files_pb2.GetFileRequest(), metadata=(("authorization", "Bearer secret-key"),))
    assert "/tunesmith.files.v1.FilesService/GetFile" in str([record.__dict__ for record in caplog.records])
    assert "secret-key" not in str([record.__dict__ for record in caplog.records])


async def test_health_follows_the_servers_life(running: Running) -> None:
    for name in ("", NAME):
        answer = await running.health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = running.health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.create_task(running.server.stop(5))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    await stopping


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_every_service(running: Running, version: str) -> None:
    call = running.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
    ]
    listed, described = [answer async for answer in call(iter(requests))]
    names = {service.name for service in listed.list_services_response.service}
    assert {NAME, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


async def test_a_taken_port_is_told(running: Running) -> None:
    second = create_grpc_server({})
    with pytest.raises(OSError, match="taken"):
        await second.start(f"127.0.0.1:{running.port}")
