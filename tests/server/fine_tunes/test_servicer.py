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
from tunesmith_server.fine_tunes.logs import RunLogs
from tunesmith_server.fine_tunes.model_limits import ModelLimitsService
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
    logs, limits = RunLogs(platform.core, platform.executor), ModelLimitsService(platform.core)
    authenticator = Authenticator(projects, platform.core.signer)
    servicer = FineTunesServicer(platform.fine_tunes, platform.history, logs, limits, authenticator)
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
    assert job.training == pb.Training(weights="lora", lora_rank=4, use_rslora=False, long_rows="fail")
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
        ({"method": "ppo"}, "invalid_value", "method.type"),
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


async def test_wishes_and_methods_travel_like_on_rest(platform: Platform, client: Client) -> None:
    request = pb.CreateFineTuneRequest(
        model=BASE_ID,
        training_file=platform.training_file,
        scheduling=pb.SchedulingOptions(priority=3, max_run_seconds=60),
        auto_start=False,
    )
    request.method_options.type = "supervised"
    request.method_options.options.update({"hyperparameters": {"n_epochs": 2}})
    job = await client.create(request)

    assert (job.hyperparameters.n_epochs, job.auto_start, job.HasField("queue_position")) == (2, False, False)
    assert job.scheduling == pb.SchedulingOptions(priority=3, max_run_seconds=60)
    plain = await client.create(pb.CreateFineTuneRequest(model=BASE_ID, training_file=platform.training_file))
    assert plain.auto_start


async def test_dpo_travels_like_on_rest(platform: Platform, client: Client) -> None:
    request = pb.CreateFineTuneRequest(model=BASE_ID, training_file=platform.training_file)
    request.method_options.type = "dpo"
    request.method_options.options.update({"hyperparameters": {"beta": 0.5}})
    job = await client.create(request)

    assert (job.method, job.hyperparameters.beta) == ("dpo", 0.5)


async def test_adapter_settings_travel_like_on_rest(platform: Platform, client: Client) -> None:
    request = pb.CreateFineTuneRequest(model=BASE_ID, training_file=platform.training_file)
    request.training.CopyFrom(pb.Training(lora_targets=["attention", "mlp"], use_rslora=True))
    job = await client.create(request)

    assert (list(job.training.lora_targets), job.training.use_rslora) == (["attention", "mlp"], True)
    request.model = "ft:toy-base:other::nobodys"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.create(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_jobs_are_paused_resumed_and_followed(platform: Platform, client: Client) -> None:
    stub, metadata = client.stub, client.metadata
    job = await client.create(pb.CreateFineTuneRequest(model=BASE_ID, training_file=platform.training_file))
    paused = await stub.PauseFineTune(pb.PauseFineTuneRequest(id=job.id), metadata=metadata)
    assert not paused.fine_tune.auto_start
    resumed = await stub.ResumeFineTune(pb.ResumeFineTuneRequest(id=job.id), metadata=metadata)
    assert resumed.fine_tune.auto_start
    await stub.CancelFineTune(pb.CancelFineTuneRequest(id=job.id), metadata=metadata)

    watched = [each.event async for each in stub.WatchEvents(watch(job.id), metadata=metadata)]
    rest = [each.event async for each in stub.WatchEvents(watch(job.id, watched[1].id), metadata=metadata)]

    assert [event.message for event in watched] == await platform.messages(job.id)
    assert rest == watched[2:]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.WatchEvents(watch(job.id, "ftevent-x"), metadata=metadata).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_watch_that_the_server_cuts_off_says_so(platform: Platform, client: Client) -> None:
    job = await client.create(pb.CreateFineTuneRequest(model=BASE_ID, training_file=platform.training_file))
    call = client.stub.WatchEvents(watch(job.id), metadata=client.metadata)
    await call.read()
    platform.history.feed.close()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_metrics_logs_and_limits(platform: Platform, client: Client) -> None:
    stub, metadata = client.stub, client.metadata
    identity = await platform.start_training()
    heartbeat = training_pb2.HeartbeatRequest(sequence=1, total_steps=6, metrics=[step_report(1), step_report(2)])
    await platform.training.heartbeat(identity, heartbeat)

    page = await stub.ListMetrics(pb.ListMetricsRequest(fine_tune_id=identity.job_id, limit=1), metadata=metadata)
    log = await stub.ReadLog(pb.ReadLogRequest(fine_tune_id=identity.job_id), metadata=metadata)
    limits = await stub.ListModelLimits(pb.ListModelLimitsRequest(), metadata=metadata)

    assert (page.has_more, page.metrics[0].step, page.metrics[0].train_loss) == (True, 1, 1.5)
    assert not page.metrics[0].HasField("valid_loss")
    assert log.text == f"log of {identity.attempt_id}\n"
    (each,) = limits.limits
    assert (each.model, each.active_jobs, each.HasField("max_total_jobs")) == (BASE_ID, 1, False)


def watch(job_id: str, after: str = "") -> pb.WatchEventsRequest:
    """Follow from an event on."""
    return pb.WatchEventsRequest(fine_tune_id=job_id, after=after)
