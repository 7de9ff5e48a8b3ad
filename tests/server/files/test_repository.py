"""Questions about files stay cheap, however many files and ended jobs there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event, text

from tests.support.factories import PRINCIPAL, Platform, store_file
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FileRow
from tunesmith_server.files import repository


async def test_uses_and_owners_are_found_by_an_index(core: Core) -> None:
    async with core.database.write() as session:
        with asked() as statements:
            await repository.find_job_using(session, "file-1")
            await repository.unowned_keys(session, ["files/default/file-1"])
            await repository.delete_expired(session, 1)
        plans = [
            [str(step.detail) for step in await session.execute(text(f"EXPLAIN QUERY PLAN {sql}"), values)]
            for sql, values in statements
            if not sql.startswith("BEGIN")
        ]
    find, unowned, expired = plans
    assert any("ix_fine_tunes_state" in step for step in find)
    assert any("ix_files_storage_key" in step for step in unowned)
    assert not [step for step in (*find, *unowned, *expired) if step.startswith("SCAN fine_tunes")]
    assert not [step for step in unowned if step.startswith("SCAN")]


async def test_a_page_of_files_holds_what_is_shown_and_no_whole_rows(each_platform: Platform) -> None:
    made = [await store_file(each_platform.core) for _ in range(3)]
    loaded: list[FileRow] = []

    def note(row: FileRow, _context: object) -> None:
        loaded.append(row)

    event.listen(FileRow, "load", note)
    try:
        async with each_platform.core.database.read() as session:
            page = await repository.list_page(session, PRINCIPAL.project_id, repository.FileQuery(3, 1))
    finally:
        event.remove(FileRow, "load", note)
    assert [row.id for row in page] == made[::-1]
    assert loaded == []


@contextmanager
def asked() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What is sent to a database within the block, with named values."""
    found: list[tuple[str, dict[str, Any]]] = []

    def note(_connection: Any, _cursor: Any, sql: str, values: tuple[Any, ...], *_: Any) -> None:
        named = {f"v{number}": value for number, value in enumerate(values)}
        for name in named:
            sql = sql.replace("?", f":{name}", 1)
        found.append((sql, named))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)
