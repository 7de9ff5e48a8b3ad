from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.inference.gateway import BASE, BASE_REVISION, servable, until
from tests.support.serving_control_plane import SERVICE_TOKEN, ServingControlPlane
from tunesmith_inference.auth import KeyRejected, KeysUnavailable, Principal
from tunesmith_inference.registry_client import RegistryClient, RevisionUnavailable, connect
from tunesmith_inference.router import Kind
from tunesmith_proto.registry.v1 import serving_pb2


@pytest.fixture
def control_plane() -> ServingControlPlane:
    control_plane = ServingControlPlane()
    control_plane.models[BASE] = servable(BASE, BASE_REVISION, serving_pb2.SERVABLE_KIND_BASE, project_id="")
    control_plane.keys["key"] = "p1"
    return control_plane


@contextlib.asynccontextmanager
async def _following(control_plane: ServingControlPlane) -> AsyncIterator[RegistryClient]:
    async with connect(control_plane.address, SERVICE_TOKEN) as client:
        following = asyncio.create_task(client.follow(lambda: None))
        try:
            yield client
        finally:
            following.cancel()
            await asyncio.wait({following})


async def test_the_list_is_there_when_it_is_complete_and_follows_changes(control_plane: ServingControlPlane) -> None:
    async with _following(control_plane) as client, control_plane.running():
        models = (await client.known()).models
        assert (models[BASE].kind, models[BASE].revision, models[BASE].project_id) == (Kind.BASE, BASE_REVISION, "")
        control_plane.upsert(servable("mine", "a" * 64, serving_pb2.SERVABLE_KIND_ADAPTER, checkpoint=True))
        await until(lambda: "mine" in client.names.models)
        assert client.names.models["mine"].checkpoint
        control_plane.delete("mine")
        await until(lambda: "mine" not in client.names.models)


async def test_a_restart_of_the_control_plane_is_survived(control_plane: ServingControlPlane) -> None:
    async with _following(control_plane) as client:
        async with control_plane.running():
            await client.known()
        assert BASE in client.names.models
        with pytest.raises(KeysUnavailable):
            await client.authenticate("key")
        with pytest.raises(RevisionUnavailable):
            await client.revision_files("a" * 64)
        control_plane.models["new"] = servable("new", "a" * 64, serving_pb2.SERVABLE_KIND_FULL)
        del control_plane.models[BASE]
        async with control_plane.running():
            await until(lambda: set(client.names.models) == {"new"})
            assert await client.authenticate("key") == Principal("p1", "key-p1")


async def test_keys_and_files_are_asked_for(control_plane: ServingControlPlane) -> None:
    revision = control_plane.add_revision({"golden.json": b"12"})
    async with connect(control_plane.address, SERVICE_TOKEN) as client, control_plane.running():
        assert await client.authenticate("key") == Principal("p1", "key-p1")
        with pytest.raises(KeyRejected):
            await client.authenticate("\udcff")
        (file,) = await client.revision_files(revision)
        assert (file.path, file.size) == ("golden.json", 2)
        with pytest.raises(RevisionUnavailable):
            await client.revision_files("a" * 64)


async def test_the_current_list_is_asked_for_and_the_followed_one_serves_without_a_control_plane(
    control_plane: ServingControlPlane,
) -> None:
    async with connect(control_plane.address, SERVICE_TOKEN) as client:
        async with control_plane.running():
            assert set((await client.current()).models) == {BASE}
        assert await client.current() == client.names
