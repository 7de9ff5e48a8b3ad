"""Graders over gRPC: the same rewards and the same error reasons as over REST."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.server.graders.gateway import Gateway, authenticator_of, proxy_to
from tests.server.graders.graders import BOTH, EXACT
from tunesmith_proto.graders.v1 import graders_pb2 as pb
from tunesmith_proto.graders.v1 import graders_pb2_grpc
from tunesmith_server.core import Core
from tunesmith_server.graders.service import GradersService
from tunesmith_server.graders.servicer import GradersServicer
from tunesmith_server.grpc_app import create_grpc_server

NAME = pb.DESCRIPTOR.services_by_name["GradersService"].full_name
KEY = (("authorization", "Bearer mine"),)


@pytest.fixture
async def stub(core: Core) -> AsyncIterator[graders_pb2_grpc.GradersServiceAsyncStub]:
    service = GradersService()
    async with proxy_to(Gateway()) as proxy:
        servicer = GradersServicer(service, proxy, authenticator_of(core))
        server = create_grpc_server({NAME: partial(graders_pb2_grpc.add_GradersServiceServicer_to_server, servicer)})
        port = await server.start("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield graders_pb2_grpc.GradersServiceStub(channel)
        await server.stop(0)
    service.close()


def struct(value: dict[str, Any]) -> Struct:
    return ParseDict(value, Struct())


async def test_a_grader_runs(stub: graders_pb2_grpc.GradersServiceAsyncStub) -> None:
    request = pb.RunGraderRequest(grader=struct(BOTH), item=struct({"answer": "Paris"}), model_sample="Paris")

    result = await stub.RunGrader(request, metadata=KEY)

    assert result.reward == 0.875
    assert dict(result.sub_rewards) == {"exact": 1.0, "close": 1.0, "judge": 0.5}
    assert dict(result.model_grader_token_usage_per_model) == {"judge-1": 7}
    assert (result.metadata.name, result.metadata.token_usage) == ("both", 7)
    assert not result.metadata.HasField("sampled_model_name")
    assert result.metadata.errors == pb.GraderErrors()


async def test_whole_numbers_of_an_item_stay_whole(stub: graders_pb2_grpc.GradersServiceAsyncStub) -> None:
    request = pb.RunGraderRequest(grader=struct(EXACT), item=struct({"answer": [4, 0.5]}), model_sample="[4, 0.5]")

    assert (await stub.RunGrader(request, metadata=KEY)).reward == 1.0


async def test_a_grader_is_validated(stub: graders_pb2_grpc.GradersServiceAsyncStub) -> None:
    answer = await stub.ValidateGrader(pb.ValidateGraderRequest(grader=struct(BOTH)), metadata=KEY)

    assert MessageToDict(answer.grader) == BOTH


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (pb.ValidateGraderRequest(), "missing_required_parameter"),
        (pb.ValidateGraderRequest(grader=struct({"type": "magic"})), "invalid_value"),
        (
            pb.ValidateGraderRequest(grader=struct({"type": "python", "name": "p", "source": "x"})),
            "unsupported_grader",
        ),
        (pb.ValidateGraderRequest(grader=struct(BOTH | {"calculate_output": "x"})), "invalid_formula"),
    ],
)
async def test_reasons_are_those_of_rest(
    stub: graders_pb2_grpc.GradersServiceAsyncStub, request_: pb.ValidateGraderRequest, expected: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ValidateGrader(request_, metadata=KEY)

    info = error_details_pb2.ErrorInfo()
    rpc_status.from_call(caught.value).details[0].Unpack(info)
    assert info.reason == expected


async def test_it_needs_a_key(stub: graders_pb2_grpc.GradersServiceAsyncStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.RunGrader(pb.RunGraderRequest(grader=struct(EXACT)))

    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
