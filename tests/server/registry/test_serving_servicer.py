"""Both gRPC services of the registry, called over a real channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy import update

from tests.support.artifacts import publish_base_model
from tests.support.factories import store_file
from tests.support.registry import publish_tuned_model
from tunesmith_proto.registry.v1 import models_pb2, models_pb2_grpc, serving_pb2, serving_pb2_grpc
from tunesmith_server.auth import Authenticator, Principal
from tunesmith_server.captures.repository import CaptureFilter
from tunesmith_server.captures.service import CapturesService
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FineTuneRow, ProjectRow
from tunesmith_server.grpc_app import create_grpc_server
from tunesmith_server.projects.rate_limits import RateLimits
from tunesmith_server.projects.usage import UsageQuery, UsageService
from tunesmith_server.registry.imports import ImportsService
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.registry.servicer import ModelsServicer
from tunesmith_server.registry.serving_servicer import ServingServicer

TUNED = "ft:toy-base:default:mine:aaaaaaaa"
GATEWAY = (("authorization", "Bearer gateway-token"),)
USER = (("authorization", "Bearer good"),)


class Keys:
    """Knows a key that may do everything and one with limits that may not infer."""

    async def find_principal(self, key: str) -> Principal | None:
        if key == "files":
            return Principal("default", "key_2", frozenset({"files.read"}))
        return Principal("default", "key_1", limits=RateLimits(60, None), capture=True) if key == "good" else None


@pytest.fixture
def registry(core: Core) -> RegistryService:
    return RegistryService(core)


@pytest.fixture
async def channel(core: Core, registry: RegistryService) -> AsyncIterator[grpc.aio.Channel]:
    authenticator = Authenticator(Keys(), core.signer, "gateway-token")
    serving = ServingServicer(registry, authenticator, UsageService(core), CapturesService(core))
    models = ModelsServicer(registry, ImportsService(core), authenticator)
    server = create_grpc_server(
        {
            "tunesmith.registry.v1.ServingService": (
                lambda made: serving_pb2_grpc.add_ServingServiceServicer_to_server(serving, made)
            ),
            "tunesmith.registry.v1.ModelsService": (
                lambda made: models_pb2_grpc.add_ModelsServiceServicer_to_server(models, made)
            ),
        }
    )
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as made:
        yield made
    registry.changes.close()
    await server.stop(0)


def serving_stub(channel: grpc.aio.Channel) -> Any:
    return serving_pb2_grpc.ServingServiceStub(channel)


def models_stub(channel: grpc.aio.Channel) -> Any:
    return models_pb2_grpc.ModelsServiceStub(channel)


def reason(error: grpc.aio.AioRpcError) -> str:
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(bytes(details)).details[0].Unpack(info)
    return str(info.reason)


async def test_a_gateway_follows_the_registry(core: Core, registry: RegistryService, channel: grpc.aio.Channel) -> None:
    base_revision = await publish_base_model(core, "alias")
    revision = await publish_tuned_model(core, TUNED, base_revision)

    watch = serving_stub(channel).WatchModels(serving_pb2.WatchModelsRequest(), metadata=GATEWAY, timeout=30)
    snapshot = [await watch.read() for _ in range(4)]

    assert [change.upserted.name for change in snapshot] == ["alias", "toy-base", TUNED, ""]
    assert snapshot[0].upserted.kind == serving_pb2.SERVABLE_KIND_BASE
    assert snapshot[2].upserted == serving_pb2.ServableModel(
        name=TUNED,
        project_id="default",
        kind=serving_pb2.SERVABLE_KIND_ADAPTER,
        revision=revision,
        base_model_id="toy-base",
        base_revision=base_revision,
        created=int(core.clock()),
    )
    assert snapshot[3].snapshot_complete
    await models_stub(channel).DeleteModel(models_pb2.DeleteModelRequest(id=TUNED), metadata=USER)
    assert (await watch.read()).deleted == TUNED
    registry.changes.close()
    assert await watch.read() == grpc.aio.EOF


async def test_users_read_what_gateways_hold_of_a_model(core: Core, channel: grpc.aio.Channel) -> None:
    revision = await publish_tuned_model(core, TUNED, await publish_base_model(core))
    get = models_pb2.GetModelRequest(id=TUNED)

    before = (await models_stub(channel).GetModel(get, metadata=USER)).model.serving
    report = serving_pb2.ReportReplicasRequest(
        gateway_id="g1",
        replicas=[
            serving_pb2.Replica(
                revision=revision,
                engine="base-1",
                state=serving_pb2.REPLICA_STATE_FAILED,
                reason="the proof failed",
                since=7,
            )
        ],
    )
    await serving_stub(channel).ReportReplicas(report, metadata=GATEWAY)
    after = (await models_stub(channel).GetModel(get, metadata=USER)).model.serving

    assert (before.state, list(before.replicas)) == ("not_loaded", [])
    assert (after.state, after.reason) == ("failed", "the proof failed")
    assert [(one.gateway, one.engine, one.since) for one in after.replicas] == [("g1", "base-1", 7)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await serving_stub(channel).ReportReplicas(report, metadata=USER)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_captures_are_stored_once_and_what_makes_no_sense_is_counted(
    core: Core, channel: grpc.aio.Channel
) -> None:
    async with core.database.write() as session:
        session.add(ProjectRow(id="default", created_at=0))
    sent = serving_pb2.Capture(
        id="chatcmpl-1",
        project_id="default",
        key_id="key_1",
        model="m",
        finish_reason="stop",
        messages='[{"role": "user", "content": "a"}]',
        answer='{"role": "assistant", "content": "b"}',
    )
    nobodys = serving_pb2.Capture()
    nobodys.MergeFrom(sent)
    nobodys.id, nobodys.project_id = "chatcmpl-2", "no-such-project"
    report = serving_pb2.ReportCapturesRequest(captures=[sent, serving_pb2.Capture(id="no answer"), nobodys])
    for _ in range(2):
        assert (await serving_stub(channel).ReportCaptures(report, metadata=GATEWAY)).refused == 2
    page = await CapturesService(core).list(Principal("default", "key_1"), CaptureFilter())
    assert [(each.row.id, each.content.answer["content"]) for each in page.captures] == [("chatcmpl-1", "b")]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await serving_stub(channel).ReportCaptures(report, metadata=USER)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_gateway_gets_the_files_of_tuned_and_base_revisions(core: Core, channel: grpc.aio.Channel) -> None:
    base_revision = await publish_base_model(core)
    revision = await publish_tuned_model(core, TUNED, base_revision)
    stub = serving_stub(channel)

    tuned = await stub.GetRevision(serving_pb2.GetRevisionRequest(revision=revision), metadata=GATEWAY)
    base = await stub.GetRevision(serving_pb2.GetRevisionRequest(revision=base_revision), metadata=GATEWAY)

    assert [(file.path, file.size, file.sha256) for file in tuned.files] == [("adapter_model.safetensors", 5, revision)]
    assert tuned.files[0].url.startswith("http://")
    assert [file.path for file in base.files] == ["config.json", "model.safetensors"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetRevision(serving_pb2.GetRevisionRequest(revision="0" * 64), metadata=GATEWAY)
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.NOT_FOUND, "revision_not_found")


async def test_a_gateway_learns_whose_a_key_is(channel: grpc.aio.Channel) -> None:
    stub = serving_stub(channel)

    answer = await stub.Authenticate(serving_pb2.AuthenticateRequest(api_key="good"), metadata=GATEWAY)

    assert (answer.project_id, answer.key_id) == ("default", "key_1")
    assert (answer.requests_per_minute, answer.HasField("tokens_per_minute")) == (60, False)
    assert answer.capture
    for _ in range(61):  # gateways count their callers themselves
        await stub.Authenticate(serving_pb2.AuthenticateRequest(api_key="good"), metadata=GATEWAY)
    for key in ("bad", "", "good\nx"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Authenticate(serving_pb2.AuthenticateRequest(api_key=key), metadata=GATEWAY)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Authenticate(serving_pb2.AuthenticateRequest(api_key="files"), metadata=GATEWAY)
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.PERMISSION_DENIED, "missing_scope")


async def test_a_gateway_reports_usage_once(core: Core, channel: grpc.aio.Channel) -> None:
    async with core.database.write() as session:
        session.add(ProjectRow(id="default", created_at=0))
    hour = int(core.clock()) // 3600 * 3600
    line = serving_pb2.UsageLine(
        project_id="default", key_id="k", model="m", hour=hour, requests=2, input_tokens=30, output_tokens=4
    )
    report = serving_pb2.ReportUsageRequest(gateway_id="g", sequence=1, lines=[line])
    for _ in range(2):
        await serving_stub(channel).ReportUsage(report, metadata=GATEWAY)
    page = await UsageService(core).read(UsageQuery(hour, hour + 1, group_by=("kind", "model")))
    [one] = page.buckets[0].sums
    assert (one.group, one.requests, one.input_tokens, one.output_tokens) == (
        {"kind": "inference", "model": "m"},
        2,
        30,
        4,
    )


@pytest.mark.parametrize("metadata", [(), USER])
async def test_only_gateways_may_ask(channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
    stub = serving_stub(channel)
    calls = [
        stub.GetRevision(serving_pb2.GetRevisionRequest(revision="0" * 64), metadata=metadata),
        stub.Authenticate(serving_pb2.AuthenticateRequest(api_key="good"), metadata=metadata),
        stub.ReportUsage(serving_pb2.ReportUsageRequest(gateway_id="g", sequence=1), metadata=metadata),
        stub.WatchModels(serving_pb2.WatchModelsRequest(), metadata=metadata).read(),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_user_brings_a_model(core: Core, channel: grpc.aio.Channel) -> None:
    await publish_tuned_model(core, TUNED, await publish_base_model(core))
    stub, file = models_stub(channel), await store_file(core, purpose="model")
    request = models_pb2.CreateModelRequest(base_model="toy-base", file=file, suffix="brought", request_id="key")

    made = (await stub.CreateModel(request, metadata=USER)).model
    assert made.id.startswith("ft:toy-base:default:brought:")
    assert (made.status, made.HasField("error"), made.serving.state) == ("importing", False, "not_loaded")
    assert (await stub.CreateModel(request, metadata=USER)).model == made
    async with core.database.write() as session:
        await session.execute(
            update(FineTuneRow)
            .where(FineTuneRow.kind == "import")
            .values(state="failed", error_code="config_differs", error_message="Another one.", error_param="base_model")
        )
    failed = (await stub.GetModel(models_pb2.GetModelRequest(id=made.id), metadata=USER)).model
    expected = models_pb2.ModelError(code="config_differs", message="Another one.", param="base_model")
    assert (failed.status, failed.error) == ("failed", expected)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateModel(models_pb2.CreateModelRequest(base_model="toy-base"), metadata=USER)
    assert reason(caught.value) == "invalid_value"


async def test_a_user_lists_reads_and_deletes(core: Core, channel: grpc.aio.Channel) -> None:
    base_revision = await publish_base_model(core, "org/model")
    await publish_tuned_model(core, TUNED, base_revision)
    stub = models_stub(channel)

    listed = await stub.ListModels(models_pb2.ListModelsRequest(), metadata=USER)
    alias = await stub.GetModel(models_pb2.GetModelRequest(id="org/model"), metadata=USER)
    deleted = await stub.DeleteModel(models_pb2.DeleteModelRequest(id=TUNED), metadata=USER)

    assert [(model.id, model.owned_by) for model in listed.models] == [
        (TUNED, "default"),
        ("toy-base", "tunesmith"),
        ("org/model", "tunesmith"),
    ]
    assert (alias.model.id, alias.model.created) == ("org/model", int(core.clock()))
    assert deleted.id == TUNED
    for name, expected in ((TUNED, "model_not_found"), ("toy-base", "base_model_not_deletable")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.DeleteModel(models_pb2.DeleteModelRequest(id=name), metadata=USER)
        assert reason(caught.value) == expected
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListModels(models_pb2.ListModelsRequest())
    assert reason(caught.value) == "missing_api_key"
