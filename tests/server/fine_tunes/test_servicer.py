"""Jobs over gRPC: the same core, the same rules, the same error codes as over REST."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.artifacts import BASE_ID
from tests.support.factories import PRINCIPAL, Platform, step_report
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2 as pb
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2_grpc
from tunesmith_proto.training.v1 import training_pb2
from tunesmith_server.auth import Authenticator
from tunesmith_server.fine_tunes.servicer import FineTunesServicer
from tunesmith_server.grpc_app import create_grpc_server
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService

NAME = pb.DESCRIPTOR.services_by_name["FineTunesService"].full_name


class Client:
    """A stub with its key."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self.stub = fine_tunes_pb2_grpc.FineTunesServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {key}"),)

    async def create(self, request: pb.CreateFineTuneRequest) -> pb.FineTune:
        """Makes a job."""
        return (await self.stub.CreateFineTune(request, metadata=self.metadata)).fine_tune


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[Client]:
    """A client of a real server with a key of the default project."""
    projects = ProjectsService(platform.core)
    key = (await projects.create_key(DEFAULT_PROJECT, "test")).key
    servicer = FineTunesServicer(platform.fine_tunes, Authenticator(projects, platform.core.signer))
    server = create_grpc_server({NAME: partial(fine_tunes_pb2_grpc.add_FineTunesServiceServicer_to_server, servicer)})
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(channel, key)
    await server.stop(0)


async def test_what_is_made_here_is_the_same_job_there(platform: Platform, client: Client) -> None:
    request = pb.CreateFineTuneRequest(
        model=BASE_ID,
        training_file=platform.training_file,
        validation_file=platform.validation_file,
        suffix="toy",
        seed=0,
        hyperparameters=pb.Hyperparameters(n_epochs=2, learning_rate_multiplier=0.5),
        training=pb.Training(lora_rank=4),
        metadata={"team": "blue"},
        request_id="r1",
    )
    job = await client.create(request)

    shown = await platform.fine_tunes.get(PRINCIPAL, job.id)
    assert (shown.seed, shown.user_provided_suffix, shown.metadata) == (0, "toy", {"team": "blue"})
    assert shown.hyperparameters.model_dump() == {
        "n_epochs": 2,
        "batch_size": "auto",
        "learning_rate_multiplier": 0.5,
    }
    assert job.hyperparameters == request.hyperparameters
    assert job.training == pb.Training(weights="lora", lora_rank=4)
    assert (job.status, job.method, job.HasField("finished_at")) == ("validating_files", "supervised", False)
    assert await client.create(request) == job
    got = await client.stub.GetFineTune(pb.GetFineTuneRequest(id=job.id), metadata=client.metadata)
    assert got.fine_tune == job
    page = await client.stub.ListFineTunes(pb.ListFineTunesRequest(metadata={"team": "blue"}), metadata=client.metadata)
    assert (list(page.fine_tunes), page.has_more) == ([job], False)


async def test_history_and_cancellation(platform: Platform, client: Client) -> None:
    identity = await platform.start_training()
    heartbeat = training_pb2.HeartbeatRequest(sequence=1, total_steps=6, metrics=[step_report(1)])
    await platform.training.heartbeat(identity, heartbeat)

    cancelled = await client.stub.CancelFineTune(pb.CancelFineTuneRequest(id=identity.job_id), metadata=client.metadata)
    page = await client.stub.ListEvents(
        pb.ListEventsRequest(fine_tune_id=identity.job_id, limit=2), metadata=client.metadata
    )
    checkpoints = await client.stub.ListCheckpoints(
        pb.ListCheckpointsRequest(fine_tune_id=identity.job_id), metadata=client.metadata
    )

    assert cancelled.fine_tune.status == "cancelled"
    assert [event.message for event in page.events] == ["Fine-tuning job cancelled", "Step 1/6: training loss=1.50"]
    assert (page.events[1].type, page.events[1].data["train_loss"], page.has_more) == ("metrics", 1.5, True)
    assert list(checkpoints.checkpoints) == []


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"model": "gpt-5"}, "model_not_found", "model"),
        ({"training_file": "file-x"}, "file_not_found", "training_file"),
        ({"hyperparameters": pb.Hyperparameters(n_epochs=51)}, "invalid_value", "hyperparameters.n_epochs"),
        ({"method": "dpo"}, "unsupported_method", "method.type"),
        ({"suffix": "a b"}, "invalid_value", "suffix"),
    ],
)
async def test_refusals_name_the_same_codes_and_fields(
    platform: Platform, client: Client, changes: dict[str, object], code: str, param: str
) -> None:
    request = pb.CreateFineTuneRequest(model=BASE_ID, training_file=platform.training_file)
    request.MergeFrom(pb.CreateFineTuneRequest(**changes))  # type: ignore[arg-type]  # fields by name
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.create(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.metadata["param"]) == (code, param)
