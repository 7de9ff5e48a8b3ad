"""Checkpoint permissions over gRPC give what REST gives."""

from __future__ import annotations

from functools import partial

import grpc.aio
import pytest

from tests.server.fine_tunes.test_permissions import CHECKPOINT, publish_checkpoint
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2 as pb
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2_grpc
from tunesmith_server.auth import Authenticator
from tunesmith_server.core import Core
from tunesmith_server.fine_tunes.permission_servicer import CheckpointPermissionsServicer
from tunesmith_server.fine_tunes.permissions import PermissionsService
from tunesmith_server.grpc_app import create_grpc_server
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService

NAME = pb.DESCRIPTOR.services_by_name["CheckpointPermissionsService"].full_name


async def test_a_checkpoint_is_shared_listed_and_taken_back(core: Core) -> None:
    await publish_checkpoint(core)
    projects = ProjectsService(core)
    metadata = (("authorization", f"Bearer {(await projects.create_key(DEFAULT_PROJECT, 'a', ['admin'])).key}"),)
    servicer = CheckpointPermissionsServicer(
        PermissionsService(core, lambda: None), Authenticator(projects, core.signer)
    )
    add = fine_tunes_pb2_grpc.add_CheckpointPermissionsServiceServicer_to_server
    server = create_grpc_server({NAME: partial(add, servicer)})
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = fine_tunes_pb2_grpc.CheckpointPermissionsServiceStub(channel)
        create = pb.CreateCheckpointPermissionsRequest(fine_tuned_model_checkpoint=CHECKPOINT, project_ids=["other"])
        (made,) = (await stub.CreateCheckpointPermissions(create, metadata=metadata)).permissions
        query = pb.ListCheckpointPermissionsRequest(fine_tuned_model_checkpoint=CHECKPOINT)
        assert list((await stub.ListCheckpointPermissions(query, metadata=metadata)).permissions) == [made]
        delete = pb.DeleteCheckpointPermissionRequest(fine_tuned_model_checkpoint=CHECKPOINT, id=made.id)
        assert (await stub.DeleteCheckpointPermission(delete, metadata=metadata)).id == made.id
        empty = pb.CreateCheckpointPermissionsRequest(fine_tuned_model_checkpoint=CHECKPOINT)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateCheckpointPermissions(empty, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await server.stop(0)
