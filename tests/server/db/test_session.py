"""Transactions behave the same on both databases."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select, update

from tunesmith_server.core import Core
from tunesmith_server.db.session import Database, sync_url
from tunesmith_server.db.tables import CounterRow


async def test_a_write_block_commits_whole_or_not_at_all(each_core: Core) -> None:
    database = each_core.database
    async with database.write() as session:
        session.add(CounterRow(name="a", value=1))

    async def fail() -> None:
        async with database.write() as session:
            session.add(CounterRow(name="b", value=1))
            await session.flush()
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        await fail()
    async with database.read() as session:
        assert list(await session.scalars(select(CounterRow.name))) == ["a"]


async def test_writers_wait_for_their_turn(each_core: Core) -> None:
    database = each_core.database
    async with database.write() as session:
        session.add(CounterRow(name="a", value=0))

    async def add_one() -> None:
        async with database.write() as session:
            await session.execute(update(CounterRow).values(value=CounterRow.value + 1))

    await asyncio.gather(*(add_one() for _ in range(20)))
    async with database.read() as session:
        assert await session.scalar(select(CounterRow.value)) == 20


def test_a_url_of_another_database_is_refused_with_the_name_of_the_setting() -> None:
    assert sync_url("postgres://u:p@h/d") == "postgresql+psycopg://u:p@h/d"
    with pytest.raises(ValueError, match="TUNESMITH_DATABASE_URL"):
        Database("mysql://h/d")
