"""Transactions behave the same on both databases."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select, text, update

from tests.support.postgres import PostgresServer
from tunesmith_server.core import Core
from tunesmith_server.db import session as session_module
from tunesmith_server.db.session import Database, sync_url
from tunesmith_server.db.tables import CounterRow

_BACKEND = text("SELECT pg_backend_pid()")


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


async def test_who_is_cancelled_in_a_transaction_keeps_nobody_from_writing(each_core: Core) -> None:
    async def write(begun: asyncio.Event) -> None:
        async with each_core.database.write() as session:
            session.add(CounterRow(name="lost", value=0))
            await session.flush()
            begun.set()
            while True:
                await session.execute(update(CounterRow).values(value=CounterRow.value + 1).returning(CounterRow.value))

    # Kept, and with them, in their tracebacks, whatever they worked with.
    cancelled = []
    for number in range(20):
        begun = asyncio.Event()
        cancelled.append(asyncio.create_task(write(begun)))
        await begun.wait()
        for _ in range(number):
            await asyncio.sleep(0)
        cancelled[-1].cancel()
        await asyncio.wait([cancelled[-1]])
        async with asyncio.timeout(5), each_core.database.write() as session:
            session.add(CounterRow(name=str(number), value=number))
    async with each_core.database.read() as session:
        assert set(await session.scalars(select(CounterRow.name))) == {str(number) for number in range(20)}


def test_a_url_of_another_database_is_refused_with_the_name_of_the_setting() -> None:
    assert sync_url("postgres://u:p@h/d") == "postgresql+psycopg://u:p@h/d"
    with pytest.raises(ValueError, match="TUNESMITH_DATABASE_URL"):
        Database("mysql://h/d")


async def test_a_connection_that_rested_while_its_server_restarted_is_replaced(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_TRUSTED_SECONDS", 0.0)
    database = Database(postgres.create_database())
    async with database.read() as session, database.read() as other:
        before = {await session.scalar(_BACKEND), await other.scalar(_BACKEND)}
    async with database.write() as session:
        killer = await session.scalar(_BACKEND)
        await session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
                "current_database() AND pid <> pg_backend_pid()"
            )
        )
    async with database.read() as session, database.read() as other:
        after = {await session.scalar(_BACKEND), await other.scalar(_BACKEND)}
    await database.close()
    assert killer in before
    assert not after & (before - {killer})
