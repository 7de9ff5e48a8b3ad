"""Uploads over gRPC: the same answers and the same error codes as over REST."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tunesmith_proto.files.v1 import files_pb2, uploads_pb2, uploads_pb2_grpc
from tunesmith_server.auth import Authenticator
from tunesmith_server.core import Core
from tunesmith_server.files.upload_service import UploadsService
from tunesmith_server.files.upload_servicer import UploadsServicer
from tunesmith_server.grpc_app import create_grpc_server
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService

ROW = b'{"prompt": "2+2=", "completion": "4"}\n'
NAME = uploads_pb2.DESCRIPTOR.services_by_name["UploadsService"].full_name


class Client:
    """A stub with its key."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self.stub = uploads_pb2_grpc.UploadsServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {key}"),)

    async def begin(self, size: int, **changes: Any) -> uploads_pb2.Upload:
        values: dict[str, Any] = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": size}
        request = uploads_pb2.CreateUploadRequest(**(values | {"mime_type": "text/jsonl"} | changes))
        return (await self.stub.CreateUpload(request, metadata=self.metadata)).upload

    async def add(self, upload_id: str, *chunks: bytes) -> uploads_pb2.UploadPart:
        def requests() -> Iterator[uploads_pb2.AddUploadPartRequest]:
            yield uploads_pb2.AddUploadPartRequest(upload_id=upload_id)
            for chunk in chunks:
                yield uploads_pb2.AddUploadPartRequest(chunk=chunk)

        return (await self.stub.AddUploadPart(requests(), metadata=self.metadata)).part

    async def complete(self, upload_id: str, *part_ids: str, md5: str = "") -> uploads_pb2.Upload:
        request = uploads_pb2.CompleteUploadRequest(upload_id=upload_id, part_ids=part_ids, md5=md5)
        return (await self.stub.CompleteUpload(request, metadata=self.metadata)).upload

    async def cancel(self, upload_id: str) -> uploads_pb2.Upload:
        request = uploads_pb2.CancelUploadRequest(upload_id=upload_id)
        return (await self.stub.CancelUpload(request, metadata=self.metadata)).upload

    async def get(self, upload_id: str) -> uploads_pb2.Upload:
        request = uploads_pb2.GetUploadRequest(upload_id=upload_id)
        return (await self.stub.GetUpload(request, metadata=self.metadata)).upload


@pytest.fixture
async def client(core: Core) -> AsyncIterator[Client]:
    projects = ProjectsService(core)
    await projects.ensure_first_key()
    new = await projects.create_key(DEFAULT_PROJECT, "test")
    servicer = UploadsServicer(UploadsService(core), Authenticator(projects, core.signer))
    server = create_grpc_server({NAME: partial(uploads_pb2_grpc.add_UploadsServiceServicer_to_server, servicer)})
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(channel, new.key)
    await server.stop(0)


def reason(error: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    rpc_status.from_call(error).details[0].Unpack(info)
    return str(info.reason)


async def test_a_file_in_parts_makes_the_round_trip(client: Client) -> None:
    after = files_pb2.ExpiresAfter(anchor="created_at", seconds=3600)
    upload = await client.begin(len(ROW) * 2, expires_after=after)
    assert (upload.status, upload.filename, upload.HasField("file")) == ("pending", "a.jsonl", False)
    back = await client.add(upload.id, ROW[5:], ROW)
    front = await client.add(upload.id, ROW[:5])
    assert (front.bytes, front.sha256) == (5, hashlib.sha256(ROW[:5]).hexdigest())
    assert {part.id for part in (await client.get(upload.id)).parts} == {front.id, back.id}
    done = await client.complete(upload.id, front.id, back.id, md5=hashlib.md5(ROW * 2).hexdigest())
    assert (done.status, done.file.bytes, done.file.status) == ("completed", len(ROW) * 2, "processed")
    assert done.file.expires_at == done.file.created_at + 3600
    assert await client.complete(upload.id, front.id, back.id) == done == await client.get(upload.id)
    given_up = await client.begin(1)
    assert (await client.cancel(given_up.id)).status == "cancelled"


async def test_errors_carry_the_codes_of_rest(client: Client, core: Core) -> None:
    upload = await client.begin(len(ROW))
    part = await client.add(upload.id, ROW)
    cancelled = await client.cancel((await client.begin(1)).id)
    no_id = iter([uploads_pb2.AddUploadPartRequest(chunk=ROW)])
    id_twice = iter([uploads_pb2.AddUploadPartRequest(upload_id=upload.id)] * 2)
    for call, expected in (
        (client.begin(0), "invalid_value"),
        (client.begin(9 * 1024**3), "file_too_large"),
        (client.begin(1, purpose="none"), "invalid_purpose"),
        (client.add("upload_none", ROW), "upload_not_found"),
        (client.add(upload.id), "empty_part"),
        (client.add(cancelled.id, ROW), "upload_cancelled"),
        (client.stub.AddUploadPart(no_id, metadata=client.metadata), "missing_required_parameter"),
        (client.stub.AddUploadPart(id_twice, metadata=client.metadata), "invalid_value"),
        (client.complete(upload.id), "missing_required_parameter"),
        (client.complete(upload.id, part.id, part.id), "duplicate_part"),
        (client.complete(upload.id, part.id, md5="0" * 32), "md5_mismatch"),
        (client.stub.GetUpload(uploads_pb2.GetUploadRequest(upload_id=upload.id)), "missing_api_key"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        assert reason(raised.value) == expected
    assert len(await core.store.list("")) == 1
