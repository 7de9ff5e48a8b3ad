"""Owns a project with a base model and three tuned ones, and its deployments."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.artifacts import publish_base_model
from tests.support.registry import publish_tuned_model
from tunesmith_server.core import Core
from tunesmith_server.deployments.service import DeploymentsService
from tunesmith_server.registry.service import RegistryService

ONE, TWO = "ft:toy-base:default:one:aaaaaaaa", "ft:toy-base:default:two:bbbbbbbb"
THEIRS = "ft:toy-base:other:theirs:cccccccc"


@pytest.fixture
async def models(each_core: Core) -> AsyncIterator[RegistryService]:
    """The registry, which holds ONE, TWO and another project's THEIRS; its feeds end with the test."""
    base_revision = await publish_base_model(each_core)
    await publish_tuned_model(each_core, ONE, base_revision)
    await publish_tuned_model(each_core, TWO, base_revision, content=b"two")
    await publish_tuned_model(each_core, THEIRS, base_revision, "other", content=b"theirs")
    made = RegistryService(each_core)
    yield made
    made.changes.close()


@pytest.fixture
def service(each_core: Core, models: RegistryService) -> DeploymentsService:
    """Deployments over that registry."""
    return DeploymentsService(each_core, models)
