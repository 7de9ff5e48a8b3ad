"""A tool that knows only the address, as grpcurl does, finds every service, understands it and calls it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.support.administration import Installation

Metadata = Sequence[tuple[str, str]]


class Tool:
    """Calls methods by name with plain dictionaries; everything it knows comes from reflection."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._database = ProtoReflectionDescriptorDatabase(self._channel)
        self._pool = DescriptorPool(self._database)

    def methods(self) -> Iterator[MethodDescriptor]:
        """Every method of our services, with its messages resolved."""
        for service in self._database.get_services():
            if service.startswith("tunesmith."):
                yield from self._pool.FindServiceByName(service).methods

    def call(self, service: str, method: str, request: dict[str, Any], metadata: Metadata) -> dict[str, Any]:
        """The answer as a dictionary; raises grpc.RpcError."""
        described = self._pool.FindServiceByName(service).methods_by_name[method]
        invoke: Any = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(described.output_type).FromString,
        )
        message = ParseDict(request, GetMessageClass(described.input_type)())
        answer: dict[str, Any] = MessageToDict(invoke(message, metadata=metadata))
        return answer

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


@pytest.fixture
async def address(installation: Installation) -> str:
    """Where the installation answers gRPC."""
    return f"127.0.0.1:{await installation.application.grpc.start('127.0.0.1:0')}"


async def test_every_method_can_be_resolved_and_called(installation: Installation, address: str) -> None:
    metadata = await installation.metadata("*")
    tool = await asyncio.to_thread(Tool, address)
    try:
        found = await asyncio.to_thread(lambda: {_path(method): _fields(method) for method in tool.methods()})
        assert installation.rpcs() <= set(found)
        assert found["/tunesmith.fine_tunes.v1.FineTunesService/GetFineTune"] == (["id"], ["fine_tune"])
        listed = await asyncio.to_thread(
            tool.call, "tunesmith.files.v1.FilesService", "ListFiles", {"limit": 5}, metadata
        )
        assert listed == {}
        with pytest.raises(grpc.RpcError, match="no fine-tuning job") as refused:
            await asyncio.to_thread(
                tool.call, "tunesmith.fine_tunes.v1.FineTunesService", "GetFineTune", {"id": "ftjob-none"}, metadata
            )
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    finally:
        await asyncio.to_thread(tool.close)
        await installation.application.grpc.stop(0)


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _fields(method: MethodDescriptor) -> tuple[list[str], list[str]]:
    return [field.name for field in method.input_type.fields], [field.name for field in method.output_type.fields]
