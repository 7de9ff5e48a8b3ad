"""Files over gRPC: the same answers and the same error codes as over REST."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.clock import MovableClock
from tunesmith_proto.files.v1 import files_pb2, files_pb2_grpc
from tunesmith_server.auth import Authenticator
from tunesmith_server.core import Core
from tunesmith_server.files.service import FilesService
from tunesmith_server.files.servicer import FilesServicer
from tunesmith_server.grpc_app import create_grpc_server
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService

ROW = b'{"prompt": "2+2=", "completion": "4"}\n'
NAME = files_pb2.DESCRIPTOR.services_by_name["FilesService"].full_name


class Client:
    """A stub with its key."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self.stub = files_pb2_grpc.FilesServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {key}"),)

    async def upload(self, *chunks: bytes, purpose: str = "fine-tune") -> files_pb2.File:
        def requests() -> Iterator[files_pb2.CreateFileRequest]:
            yield files_pb2.CreateFileRequest(info=files_pb2.FileInfo(filename="a.jsonl", purpose=purpose))
            for chunk in chunks:
                yield files_pb2.CreateFileRequest(chunk=chunk)

        answer = await self.stub.CreateFile(requests(), metadata=self.metadata)
        return answer.file


@pytest.fixture
async def client(core: Core) -> AsyncIterator[Client]:
    projects = ProjectsService(core)
    await projects.ensure_first_key()
    new = await projects.create_key(DEFAULT_PROJECT, "test")
    servicer = FilesServicer(FilesService(core), Authenticator(projects, core.signer))
    server = create_grpc_server({NAME: partial(files_pb2_grpc.add_FilesServiceServicer_to_server, servicer)})
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(channel, new.key)
    await server.stop(0)


def reason(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert info.domain == "tunesmith"
    return str(info.reason)


async def test_a_file_makes_the_round_trip(client: Client) -> None:
    file = await client.upload(ROW[:10], ROW[10:] + ROW)
    assert (file.filename, file.bytes, file.status) == ("a.jsonl", len(ROW) * 2, "processed")
    got = await client.stub.GetFile(files_pb2.GetFileRequest(id=file.id), metadata=client.metadata)
    assert got.file == file
    listed = await client.stub.ListFiles(files_pb2.ListFilesRequest(), metadata=client.metadata)
    assert (list(listed.files), listed.has_more) == ([file], False)
    await client.stub.DeleteFile(files_pb2.DeleteFileRequest(id=file.id), metadata=client.metadata)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.stub.GetFile(files_pb2.GetFileRequest(id=file.id), metadata=client.metadata)
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert reason(raised.value) == "file_not_found"


async def test_a_file_expires_by_either_transport(client: Client, clock: MovableClock) -> None:
    info = files_pb2.FileInfo(filename="a.jsonl", purpose="fine-tune")
    info.expires_after.CopyFrom(files_pb2.ExpiresAfter(anchor="created_at", seconds=3600))

    async def create() -> files_pb2.File:
        requests = [files_pb2.CreateFileRequest(info=info), files_pb2.CreateFileRequest(chunk=ROW)]
        return (await client.stub.CreateFile(iter(requests), metadata=client.metadata)).file

    assert (await create()).expires_at == clock.now + 3600
    assert not (await client.upload(ROW)).HasField("expires_at")
    info.expires_after.seconds = 1
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await create()
    assert reason(raised.value) == "invalid_value"


async def test_content_streams_in_small_messages(client: Client) -> None:
    content = ROW * 60_000  # over two chunks of storage
    parts = [content[start : start + 1024 * 1024] for start in range(0, len(content), 1024 * 1024)]
    file = await client.upload(*parts)
    call = client.stub.DownloadFile(files_pb2.DownloadFileRequest(id=file.id), metadata=client.metadata)
    chunks = [message.chunk async for message in call]
    assert b"".join(chunks) == content
    assert max(len(chunk) for chunk in chunks) <= 1024 * 1024


async def test_problems_of_a_file_are_field_violations(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.upload(ROW + b"{\n" + ROW + b"[]\n")
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason(raised.value) == "invalid_json"
    details = error_details_pb2.BadRequest()
    rpc_status.from_call(raised.value).details[1].Unpack(details)
    assert [violation.description for violation in details.field_violations][1].startswith("Line 4 is not")


async def test_a_thousand_problems_still_fit_into_an_answer(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.upload(b"{,\n" * 1000)
    assert reason(raised.value) == "invalid_json"
    assert "999 more problems" in str(raised.value.details())


async def test_errors_carry_the_codes_of_rest(client: Client, core: Core) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.upload(ROW, purpose="fine-tune-results")
    assert reason(raised.value) == "invalid_purpose"

    no_info = iter([files_pb2.CreateFileRequest(chunk=ROW)])
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.stub.CreateFile(no_info, metadata=client.metadata)
    assert reason(raised.value) == "missing_required_parameter"

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.stub.ListFiles(files_pb2.ListFilesRequest(after="file-none"), metadata=client.metadata)
    assert reason(raised.value) == "invalid_cursor"

    for metadata, expected in (((), "missing_api_key"), ((("authorization", "Bearer x"),), "invalid_api_key")):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.stub.ListFiles(files_pb2.ListFilesRequest(), metadata=metadata)
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert reason(raised.value) == expected
    assert await core.store.list("") == []
