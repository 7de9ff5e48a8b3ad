"""Keys: made once, stored as hashes, revoked at once."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.core import open_core
from tunesmith_server.core import Core
from tunesmith_server.db.tables import ApiKeyRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError
from tunesmith_server.projects import repository
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService


async def test_first_start_writes_a_key_that_only_its_owner_can_read(core: Core) -> None:
    service = ProjectsService(core)
    await service.ensure_first_key()

    path = core.settings.home / "api_key"
    key = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.startswith("ts-")
    assert len(key) >= 3 + 43, "256 bits in base64"
    principal = await service.find_principal(key)
    assert principal is not None
    assert principal.project_id == DEFAULT_PROJECT


async def test_later_starts_make_no_second_key(each_core: Core) -> None:
    service = ProjectsService(each_core)
    await service.ensure_first_key()
    await service.ensure_first_key()

    assert len(await service.list_keys(DEFAULT_PROJECT)) == 1


async def test_a_crash_between_file_and_row_keeps_the_written_key(core: Core) -> None:
    (core.settings.home / "api_key").write_text("ts-from-before-the-crash\n")
    service = ProjectsService(core)
    await service.ensure_first_key()

    assert await service.find_principal("ts-from-before-the-crash") is not None


async def test_a_configured_key_is_added_and_a_changed_one_too(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for key in ("first-key", "second-key", "second-key"):
        async with open_core(home, api_key=key) as core:
            await ProjectsService(core).ensure_first_key()
    async with open_core(home) as core:
        service = ProjectsService(core)
        await service.ensure_first_key()
        assert await service.find_principal("first-key") is not None
        assert await service.find_principal("second-key") is not None
        assert len(await service.list_keys(DEFAULT_PROJECT)) == 2
    assert not (home / "api_key").exists()


async def test_only_hashes_are_stored(core: Core) -> None:
    service = ProjectsService(core)
    await service.ensure_first_key()
    new = await service.create_key(DEFAULT_PROJECT, "laptop")

    async with core.database.read() as session:
        rows = list(await session.scalars(select(ApiKeyRow)))
    assert all(new.key not in str(vars(row)) for row in rows)
    assert new.key not in repr(new)


async def test_a_revoked_key_is_nobody(each_core: Core) -> None:
    service = ProjectsService(each_core)
    await service.ensure_first_key()
    new = await service.create_key(DEFAULT_PROJECT, "laptop")
    assert await service.find_principal(new.key) is not None

    await service.revoke_key(DEFAULT_PROJECT, new.id)

    assert await service.find_principal(new.key) is None
    with pytest.raises(NotFoundError):
        await service.revoke_key(DEFAULT_PROJECT, new.id)


@pytest.mark.parametrize("seconds", [-1, 0, 2**63 - 1])
async def test_an_expiry_that_cannot_be_is_refused(core: Core, seconds: int) -> None:
    service = ProjectsService(core)
    await service.ensure_first_key()
    [key] = await service.list_keys(DEFAULT_PROJECT)
    for call in (
        service.create_key(DEFAULT_PROJECT, "short", expires_in_seconds=seconds),
        service.update_key(DEFAULT_PROJECT, key.id, expires_in_seconds=seconds),
    ):
        with pytest.raises(InvalidRequestError) as raised:
            await call
        assert (raised.value.code, raised.value.param) == ("invalid_value", "expires_in_seconds")


async def test_a_key_that_is_revoked_while_it_is_rotated_leaves_none(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = ProjectsService(core)
    await service.ensure_first_key()
    key = await service.create_key(DEFAULT_PROJECT, "laptop", expires_in_seconds=60)
    insert_key = repository.insert_key

    async def revoked_first(session: AsyncSession, row: ApiKeyRow) -> None:
        await repository.revoke_key(session, DEFAULT_PROJECT, key.id, 1)
        await insert_key(session, row)

    monkeypatch.setattr(repository, "insert_key", revoked_first)
    with pytest.raises(NotFoundError):
        await service.rotate_key(DEFAULT_PROJECT, key.id)
    assert len(await service.list_keys(DEFAULT_PROJECT)) == 2


async def test_keys_may_be_revoked_while_they_are_listed(core: Core) -> None:
    service = ProjectsService(core)
    await service.ensure_first_key()
    for name in "abc":
        await service.create_key(DEFAULT_PROJECT, name)
    left, after = 4, None
    while left:
        page = await service.page_of_keys(DEFAULT_PROJECT, limit=1, after=after)
        after = page.keys[0].id
        await service.revoke_key(DEFAULT_PROJECT, after)
        left -= 1
    assert (await service.page_of_keys(DEFAULT_PROJECT)).keys == []


async def test_keys_belong_to_their_project(core: Core) -> None:
    service = ProjectsService(core)
    await service.ensure_first_key()
    new = await service.create_key(DEFAULT_PROJECT, "laptop")

    with pytest.raises(NotFoundError):
        await service.revoke_key("other", new.id)
    with pytest.raises(NotFoundError):
        await service.create_key("other", "laptop")
    assert await service.find_principal("ts-unknown") is None
