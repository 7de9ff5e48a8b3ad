"""Deployments over gRPC: the same answers and the same error codes as over REST."""

from __future__ import annotations

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.administration import Installation
from tests.support.artifacts import publish_base_model
from tests.support.registry import publish_tuned_model
from tunesmith_proto.deployments.v1 import deployments_pb2 as pb
from tunesmith_proto.deployments.v1 import deployments_pb2_grpc

ONE = "ft:toy-base:default:one:aaaaaaaa"


async def test_the_life_of_a_name(installation: Installation) -> None:
    base_revision = await publish_base_model(installation.core)
    await publish_tuned_model(installation.core, ONE, base_revision)
    key = await installation.metadata()
    async with installation.channel() as channel:
        stub = deployments_pb2_grpc.DeploymentsServiceStub(channel)
        target = pb.Target(model=ONE, weight=1)
        create = pb.CreateDeploymentRequest(name="bot", targets=[target], pinned=True)
        made = (await stub.CreateDeployment(create, metadata=key)).deployment
        assert (made.version, made.pinned, made.targets[0].state) == (1, True, "not_loaded")

        canary = [pb.Target(model=ONE, weight=9), pb.Target(model="toy-base", weight=1)]
        changed = await stub.UpdateDeployment(pb.UpdateDeploymentRequest(name="bot", targets=canary), metadata=key)
        assert (changed.deployment.version, changed.deployment.pinned) == (2, True)
        unpinned = await stub.UpdateDeployment(pb.UpdateDeploymentRequest(name="bot", pinned=False), metadata=key)
        assert (unpinned.deployment.version, unpinned.deployment.pinned) == (2, False)
        back = (await stub.RollBackDeployment(pb.RollBackDeploymentRequest(name="bot"), metadata=key)).deployment
        assert (back.version, [each.model for each in back.targets]) == (3, [ONE])
        versions = await stub.ListDeploymentVersions(
            pb.ListDeploymentVersionsRequest(name="bot", after=3, limit=1), metadata=key
        )
        assert ([*versions.versions[0].targets], versions.has_more) == (canary, True)
        listed = await stub.ListDeployments(pb.ListDeploymentsRequest(), metadata=key)
        got = await stub.GetDeployment(pb.GetDeploymentRequest(name="bot"), metadata=key)
        assert [*listed.deployments] == [got.deployment] == [back]

        await stub.DeleteDeployment(pb.DeleteDeploymentRequest(name="bot"), metadata=key)
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await stub.GetDeployment(pb.GetDeploymentRequest(name="bot"), metadata=key)
        assert (gone.value.code(), reason(gone.value)) == (grpc.StatusCode.NOT_FOUND, "deployment_not_found")
        with pytest.raises(grpc.aio.AioRpcError) as bad:
            await stub.CreateDeployment(pb.CreateDeploymentRequest(name="Bot", targets=[target]), metadata=key)
        assert bad.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def reason(error: grpc.aio.AioRpcError) -> str:
    """The code that REST would give."""
    status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
    assert status is not None
    assert any(detail.Unpack(info) for detail in status.details)
    return str(info.reason)
