"""Keys are remembered for seconds, ended at once where they are ended, and their use is noted beside the calls."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from tests.support.clock import MovableClock
from tunesmith_server.core import Core
from tunesmith_server.db.session import Database
from tunesmith_server.errors import UnauthenticatedError
from tunesmith_server.projects.administration import Administration
from tunesmith_server.projects.key_lookup import FRESH_SECONDS, USE_NOTED_SECONDS
from tunesmith_server.projects.rate_limits import RateLimits
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService


@pytest.fixture
async def keys(each_core: Core) -> ProjectsService:
    service = ProjectsService(each_core)
    await service.ensure_first_key()
    return service


async def refusal(keys: ProjectsService, key: str) -> str:
    with pytest.raises(UnauthenticatedError) as raised:
        await keys.find_principal(key)
    return raised.value.code


async def test_a_key_ended_elsewhere_works_for_seconds(
    keys: ProjectsService, each_core: Core, clock: MovableClock
) -> None:
    new = await keys.create_key(DEFAULT_PROJECT, "")
    assert await keys.find_principal(new.key) is not None
    await ProjectsService(each_core).revoke_key(DEFAULT_PROJECT, new.id)
    assert await keys.find_principal(new.key) is not None
    clock.advance(FRESH_SECONDS)
    assert await keys.find_principal(new.key) is None


async def test_a_key_ends_on_time_also_while_it_is_remembered(keys: ProjectsService, clock: MovableClock) -> None:
    new = await keys.create_key(DEFAULT_PROJECT, "", expires_in_seconds=1)
    assert await keys.find_principal(new.key) is not None
    clock.advance(1)
    assert await refusal(keys, new.key) == "api_key_expired"


async def test_keys_of_an_archived_project_end_and_its_limits_reach_callers(
    keys: ProjectsService, each_core: Core
) -> None:
    administration = Administration(each_core, keys.lookup)
    await administration.create("A", "a", {"requests_per_minute": 7})
    new = await keys.create_key("a", "")
    principal = await keys.find_principal(new.key)
    assert principal is not None
    assert principal.limits == RateLimits(requests_per_minute=7)
    await administration.archive("a")
    assert await refusal(keys, new.key) == "project_archived"


async def test_a_change_during_a_lookup_is_not_forgotten(
    keys: ProjectsService, each_core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = await keys.create_key(DEFAULT_PROJECT, "")
    read = Database.read

    def read_and_revoke(database: Database) -> object:
        # Stands for a revocation that is committed after the lookup has read its row.
        keys.lookup.forget()
        return read(database)

    monkeypatch.setattr(Database, "read", read_and_revoke)
    assert await keys.find_principal(new.key) is not None
    monkeypatch.undo()
    await ProjectsService(each_core).revoke_key(DEFAULT_PROJECT, new.id)
    assert await keys.find_principal(new.key) is None, "what was read before the change must not be remembered"


async def test_the_last_use_is_written_once_a_minute(keys: ProjectsService, clock: MovableClock) -> None:
    new = await keys.create_key(DEFAULT_PROJECT, "")

    async def last_use() -> int | None:
        await keys.lookup.write_uses()
        return (await keys.get_key(DEFAULT_PROJECT, new.id)).last_used_at

    assert await last_use() is None
    first = int(clock())
    await keys.find_principal(new.key)
    assert await last_use() == first
    clock.advance(USE_NOTED_SECONDS - 1)
    await keys.find_principal(new.key)
    assert await last_use() == first
    clock.advance(1)
    await keys.find_principal(new.key)
    assert await last_use() == first + USE_NOTED_SECONDS


async def test_a_use_that_cannot_be_written_breaks_no_call_and_comes_again(
    keys: ProjectsService, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = await keys.create_key(DEFAULT_PROJECT, "")
    await keys.find_principal(new.key)

    def down(_database: Database) -> None:
        raise OperationalError("BEGIN", {}, OSError("gone"))

    with monkeypatch.context() as broken:
        broken.setattr(Database, "write", down)
        with pytest.raises(OperationalError):
            await keys.lookup.write_uses()
        assert await keys.find_principal(new.key) is not None
    await keys.lookup.write_uses()
    assert (await keys.get_key(DEFAULT_PROJECT, new.id)).last_used_at is not None
