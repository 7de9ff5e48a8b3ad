"""Captures over gRPC: the same answers and the same error codes as over REST."""

from __future__ import annotations

import json

import grpc.aio
import pytest

from tests.server.deployments.test_servicer import reason
from tests.support.administration import Installation
from tests.support.captures import capture
from tunesmith_proto.captures.v1 import captures_pb2 as pb
from tunesmith_proto.captures.v1 import captures_pb2_grpc
from tunesmith_server.captures.service import CapturesService

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"maximum": 3}}}


async def test_captures_live_as_over_rest(installation: Installation) -> None:
    reports = [capture(number, metadata={"n": str(number)}) for number in range(10)]
    await CapturesService(installation.core).take([*reports, capture(20, model="other", tools=[TOOL])])
    key = await installation.metadata()
    async with installation.channel() as channel:
        stub = captures_pb2_grpc.CapturesServiceStub(channel)
        page = await stub.ListCaptures(pb.ListCapturesRequest(limit=2, order="desc"), metadata=key)
        assert ([each.id for each in page.captures], page.has_more) == (["chatcmpl-20", "chatcmpl-9"], True)
        asked = pb.ListCapturesRequest(metadata={"n": "3"}, model="toy")
        assert [each.id for each in (await stub.ListCaptures(asked, metadata=key)).captures] == ["chatcmpl-3"]
        got = (await stub.GetCapture(pb.GetCaptureRequest(id="chatcmpl-20"), metadata=key)).capture
        assert got == page.captures[0]
        assert json.loads(got.tools) == [TOOL]
        assert json.loads(got.answer)["content"] == "22"
        changed = await stub.UpdateCapture(pb.UpdateCaptureRequest(id=got.id, metadata={"a": "b"}), metadata=key)
        assert dict(changed.capture.metadata) == {"a": "b"}

        made = await stub.CreateDataset(pb.CreateDatasetRequest(model="toy", limit=10), metadata=key)
        assert (made.rows, made.file.purpose, made.file.filename) == (10, "fine-tune", "captures.jsonl")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.CreateDataset(pb.CreateDatasetRequest(limit=0), metadata=key)
        assert reason(refused.value) == "invalid_value"

        await stub.DeleteCapture(pb.DeleteCaptureRequest(id=got.id), metadata=key)
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await stub.GetCapture(pb.GetCaptureRequest(id=got.id), metadata=key)
        assert (gone.value.code(), reason(gone.value)) == (grpc.StatusCode.NOT_FOUND, "chat_completion_not_found")
