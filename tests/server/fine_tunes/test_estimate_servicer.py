"""Estimates over gRPC give what REST gives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import grpc.aio
import pytest

from tests.server.fine_tunes.test_estimates import service
from tests.support.artifacts import BASE_ID
from tests.support.factories import Platform, preflight_report
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2 as pb
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2_grpc
from tunesmith_server.auth import Authenticator
from tunesmith_server.fine_tunes.estimate_servicer import EstimatesServicer
from tunesmith_server.grpc_app import create_grpc_server
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService

NAME = pb.DESCRIPTOR.services_by_name["EstimatesService"].full_name


@pytest.fixture
async def channel(platform: Platform) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a real server."""
    servicer = EstimatesServicer(service(platform), Authenticator(ProjectsService(platform.core), platform.core.signer))
    server = create_grpc_server({NAME: partial(fine_tunes_pb2_grpc.add_EstimatesServiceServicer_to_server, servicer)})
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as made:
        yield made
    await server.stop(0)


async def test_an_estimate_is_made_and_read(platform: Platform, channel: grpc.aio.Channel) -> None:
    stub = fine_tunes_pb2_grpc.EstimatesServiceStub(channel)
    key = (await ProjectsService(platform.core).create_key(DEFAULT_PROJECT, "test")).key
    metadata = (("authorization", f"Bearer {key}"),)
    job = pb.CreateFineTuneRequest(model=BASE_ID, training_file=platform.training_file)
    made = (
        await stub.CreateEstimate(pb.CreateEstimateRequest(fine_tune=job, wait_seconds=0), metadata=metadata)
    ).estimate
    assert (made.status, made.HasField("tokens"), made.HasField("queue")) == ("validating_files", False, False)
    await platform.training.complete_preflight(await platform.claim(made.id), preflight_report())

    read = (await stub.GetEstimate(pb.GetEstimateRequest(id=made.id), metadata=metadata)).estimate

    assert (read.status, read.tokens, read.trained_tokens, read.steps) == ("ready", 200, 600, 6)
    assert (read.hyperparameters.n_epochs, read.training.lora_rank, read.queue.position) == (3, 8, 1)
    assert [(each.name, each.value) for each in read.resolved] == [("n_epochs", "3")]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetEstimate(pb.GetEstimateRequest(id="ftest-x"), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
