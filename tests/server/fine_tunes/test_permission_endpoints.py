"""Checkpoint permissions through the official client, with a name that holds slashes, and only for admins."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from tests.server.fine_tunes.test_permissions import CHECKPOINT, publish_checkpoint
from tests.support.asgi_server import serving
from tunesmith_server.auth import Authenticator
from tunesmith_server.core import Core
from tunesmith_server.fine_tunes.permission_endpoints import create_router
from tunesmith_server.fine_tunes.permissions import PermissionsService
from tunesmith_server.http_app import create_http_app
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService


@pytest.fixture
async def url(core: Core) -> AsyncIterator[str]:
    """An app with nothing but permissions."""
    await publish_checkpoint(core)
    authenticator = Authenticator(ProjectsService(core), core.signer)
    app = create_http_app(core, authenticator, [create_router(PermissionsService(core, lambda: None))])
    async with serving(app) as address:
        yield f"{address}/v1"


async def test_an_admin_shares_lists_and_takes_back(core: Core, url: str) -> None:
    key = (await ProjectsService(core).create_key(DEFAULT_PROJECT, "admin", ["admin"])).key
    async with openai.AsyncOpenAI(api_key=key, base_url=url, max_retries=0) as client:
        permissions = client.fine_tuning.checkpoints.permissions
        made = [each async for each in permissions.create(CHECKPOINT, project_ids=["other"])]
        assert [(each.project_id, each.object) for each in made] == [("other", "checkpoint.permission")]
        listed = await permissions.list(CHECKPOINT, order="ascending")
        assert [each.id for each in listed.data] == [made[0].id]
        gone = await permissions.delete(made[0].id, fine_tuned_model_checkpoint=CHECKPOINT)
        assert (gone.id, gone.deleted, gone.object) == (made[0].id, True, "checkpoint.permission")


async def test_other_keys_may_not(core: Core, url: str) -> None:
    key = (await ProjectsService(core).create_key(DEFAULT_PROJECT, "project")).key
    async with openai.AsyncOpenAI(api_key=key, base_url=url, max_retries=0) as client:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await client.fine_tuning.checkpoints.permissions.list(CHECKPOINT)
    assert caught.value.code == "missing_scope"
