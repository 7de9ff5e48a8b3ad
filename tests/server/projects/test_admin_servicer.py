"""Administration over gRPC does what the REST routes do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.administration import Installation
from tunesmith_proto.files.v1 import files_pb2, files_pb2_grpc
from tunesmith_proto.projects.v1 import admin_pb2 as pb
from tunesmith_proto.projects.v1 import admin_pb2_grpc, usage_pb2
from tunesmith_server.projects.administration import Administration


class Caller:
    """Calls AdminService with a key."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Any) -> None:
        self.channel = channel
        self._stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        self._metadata = metadata

    async def __call__(self, name: str, /, **fields: Any) -> Any:
        """One call by the name of its method."""
        request = getattr(pb, f"{name}Request")(**fields)
        return await getattr(self._stub, name)(request, metadata=self._metadata)

    async def refused(self, name: str, /, **fields: Any) -> tuple[grpc.StatusCode, str]:
        """Status and reason of a call that must fail."""
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self(name, **fields)
        return raised.value.code(), detail(raised.value, error_details_pb2.ErrorInfo()).reason


def detail(error: grpc.aio.AioRpcError, wanted: Any) -> Any:
    """The detail of the wanted type."""
    status = rpc_status.from_call(error)
    assert status is not None
    assert any(one.Unpack(wanted) for one in status.details)
    return wanted


@pytest.fixture
async def admin(each_installation: Installation) -> AsyncIterator[Caller]:
    async with each_installation.channel() as channel:
        yield Caller(channel, await each_installation.metadata("admin"))


async def test_projects_and_keys_live_as_over_rest(admin: Caller, each_installation: Installation) -> None:
    made = (await admin("CreateProject", name="A", id="a", quotas=pb.Quotas(max_jobs=3, share=2))).project
    assert (made.id, made.status, made.quotas.max_jobs, made.quotas.HasField("max_running")) == (
        "a",
        "active",
        3,
        False,
    )
    updated = (await admin("UpdateProject", project_id="a", name="B", default_quotas=["max_jobs"])).project
    assert (updated.name, updated.quotas.HasField("max_jobs"), updated.quotas.share) == ("B", False, 2)
    listed_projects = (await admin("ListProjects", include_archived=True)).projects
    assert {one.id for one in listed_projects} == {"a", "default", "other"}

    new = await admin("CreateApiKey", project_id="a", name="ci", scopes=["files.read"], expires_in_seconds=100)
    assert new.value.startswith("ts-")
    assert (await admin("GetApiKey", project_id="a", api_key_id=new.api_key.id)).api_key == new.api_key
    wider = (await admin("UpdateApiKey", project_id="a", api_key_id=new.api_key.id, scopes=["project"])).api_key
    assert (list(wider.scopes), wider.expires_at) == (["project"], new.api_key.expires_at)
    assert not wider.capture
    captured = (await admin("UpdateApiKey", project_id="a", api_key_id=new.api_key.id, capture=True)).api_key
    assert (list(captured.scopes), captured.capture) == (["project"], True)
    rotated = await admin("RotateApiKey", project_id="a", api_key_id=new.api_key.id)
    assert (list(rotated.api_key.scopes), rotated.api_key.capture) == (["project"], True)
    assert (await admin("CreateApiKey", project_id="a", capture=True)).api_key.capture
    listed = await admin("ListApiKeys", project_id="a")
    assert {new.api_key.id, rotated.api_key.id} <= {one.id for one in listed.api_keys}
    await admin("DeleteApiKey", project_id="a", api_key_id=new.api_key.id)
    assert await admin.refused("GetApiKey", project_id="a", api_key_id=new.api_key.id) == (
        grpc.StatusCode.NOT_FOUND,
        "key_not_found",
    )
    assert (await admin("ArchiveProject", project_id="a")).project.status == "archived"
    assert (await admin("GetProject", project_id="a")).project.archived_at == int(each_installation.core.clock())

    await each_installation.part.audit.flush()
    logs = (await admin("ListAuditLogs", limit=100)).audit_logs
    assert [(one.action, one.target_id) for one in reversed(logs)] == [
        ("project.created", "a"),
        ("project.updated", "a"),
        ("api_key.created", new.api_key.id),
        ("api_key.updated", new.api_key.id),
        ("api_key.updated", new.api_key.id),
        ("api_key.rotated", new.api_key.id),
        ("api_key.created", logs[2].target_id),
        ("api_key.deleted", new.api_key.id),
        ("project.archived", "a"),
    ]


async def test_errors_have_the_reasons_of_rest(installation: Installation) -> None:
    async with installation.channel() as channel:
        await check_reasons(Caller(channel, await installation.metadata("admin")))


async def check_reasons(admin: Caller) -> None:
    """Each way to be refused, with its reason."""
    exists = await admin.refused("CreateProject", name="x", id="default")
    assert exists == (grpc.StatusCode.FAILED_PRECONDITION, "project_exists")
    for name, fields, reason in (
        ("CreateProject", {"name": ""}, "invalid_value"),
        ("UpdateProject", {"project_id": "other", "default_quotas": ["max_cats"]}, "unknown_quota"),
        ("ListProjects", {"after": "none"}, "invalid_cursor"),
        ("CreateApiKey", {"project_id": "other", "scopes": ["all"]}, "unknown_scope"),
        ("ListAuditLogs", {"limit": 101}, "invalid_value"),
        ("GetOrganizationUsage", {"kinds": ["sleep"]}, "invalid_value"),
        ("GetOrganizationUsage", {"group_by": ["colour"]}, "invalid_value"),
    ):
        assert await admin.refused(name, **fields) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    answer = await admin("GetOrganizationUsage", range=usage_pb2.UsageRange(start_time=0, limit=3))
    assert len(answer.buckets) == 3


async def test_a_key_without_the_scope_is_told_so(installation: Installation) -> None:
    async with installation.channel() as channel:
        caller = Caller(channel, await installation.metadata())
        assert await caller.refused("ListProjects") == (grpc.StatusCode.PERMISSION_DENIED, "missing_scope")


async def test_a_key_over_its_rate_is_told_when_to_come_back(installation: Installation) -> None:
    quotas = {"requests_per_minute": 1}
    await Administration(installation.core, installation.part.keys.lookup).update("default", quotas=quotas)
    async with installation.channel() as channel:
        stub: Any = files_pb2_grpc.FilesServiceStub(channel)
        metadata = await installation.metadata()
        await stub.ListFiles(files_pb2.ListFilesRequest(), metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.ListFiles(files_pb2.ListFilesRequest(), metadata=metadata)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail(raised.value, error_details_pb2.ErrorInfo()).reason == "rate_limit_exceeded"
    assert 0 < detail(raised.value, error_details_pb2.RetryInfo()).retry_delay.ToMilliseconds() <= 60_000
    assert detail(raised.value, error_details_pb2.QuotaFailure()).violations[0].subject == "rate_limit_exceeded"
