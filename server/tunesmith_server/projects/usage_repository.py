"""Owns the SQL of usage: sums per key, model and hour.

It must not know what caused them or who reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import CounterRow, UsageRow

HOUR = 3600

Kind = Literal["inference", "training"]
Group = Literal["project_id", "api_key_id", "model", "kind"]

_COLUMNS = {
    "project_id": UsageRow.project_id,
    "api_key_id": UsageRow.key_id,
    "model": UsageRow.model,
    "kind": UsageRow.kind,
}


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What one key used of one model within the hour that `hour` (Unix seconds) lies in."""

    project_id: str
    key_id: str
    model: str
    kind: Kind
    hour: int
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    device_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which usage to sum. Empty sequences match everything."""

    kinds: Sequence[Kind] = ()
    project_ids: Sequence[str] = ()
    key_ids: Sequence[str] = ()
    models: Sequence[str] = ()


ANY = UsageFilter()


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The usage of one group; `group` has a value for each name that was grouped by."""

    start_time: int
    group: Mapping[Group, str]
    requests: int
    input_tokens: int
    output_tokens: int
    device_seconds: float


async def add(session: AsyncSession, line: UsageLine) -> None:
    """Adds to what the key has used already."""
    insert: Any = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    sums = {
        "requests": line.requests,
        "input_tokens": line.input_tokens,
        "output_tokens": line.output_tokens,
        "device_seconds": line.device_seconds,
    }
    key = {
        "project_id": line.project_id,
        "key_id": line.key_id,
        "model": line.model,
        "kind": line.kind,
        "hour": line.hour - line.hour % HOUR,
    }
    statement = insert(UsageRow).values(**key, **sums)
    total = {name: getattr(UsageRow, name) + statement.excluded[name] for name in sums}
    await session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=total))


async def is_next(session: AsyncSession, source: str, sequence: int) -> bool:
    """Whether nothing with this sequence or a higher one came from `source` yet; from now on it has."""
    statement = (
        update(CounterRow)
        .where(CounterRow.name == source, CounterRow.value < sequence)
        .values(value=sequence)
        .returning(CounterRow.name)
    )
    if await session.scalar(statement) is not None:
        return True
    insert: Any = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    first = insert(CounterRow).values(name=source, value=sequence).on_conflict_do_nothing().returning(CounterRow.name)
    return await session.scalar(first) is not None


async def sums(
    session: AsyncSession, which: UsageFilter, start: int, end: int, width: int, group_by: Sequence[Group]
) -> list[UsageSum]:
    """Sums per bucket of `width` seconds from `start` to before `end`, and per group within it, in this order."""
    bucket = (UsageRow.hour - UsageRow.hour % width).label("bucket")
    columns = [_COLUMNS[name] for name in group_by]
    statement = select(
        bucket,
        *columns,
        func.sum(UsageRow.requests),
        func.sum(UsageRow.input_tokens),
        func.sum(UsageRow.output_tokens),
        func.sum(UsageRow.device_seconds),
    ).where(UsageRow.hour >= start, UsageRow.hour < end)
    for column, values in (
        (UsageRow.kind, which.kinds),
        (UsageRow.project_id, which.project_ids),
        (UsageRow.key_id, which.key_ids),
        (UsageRow.model, which.models),
    ):
        if values:
            statement = statement.where(column.in_(values))
    rows = await session.execute(statement.group_by(bucket, *columns).order_by(bucket, *columns))
    return [_sum(row, group_by) for row in rows]


def _sum(row: Sequence[Any], group_by: Sequence[Group]) -> UsageSum:
    start, *rest = row
    group = {name: str(value) for name, value in zip(group_by, rest, strict=False)}
    requests, input_tokens, output_tokens, device_seconds = rest[len(group_by) :]
    return UsageSum(int(start), group, int(requests), int(input_tokens), int(output_tokens), float(device_seconds))
