"""Owns the SQL of jobs and their history; `transition` and `claim` are the only writers of a job's state.

It must not know why a state changes. Every write is a compare-and-set, so the same SQL serves SQLite and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, func, or_, select, tuple_, update
from sqlalchemy import insert as insert_into
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.json_pairs import has_pair
from tunesmith_server.db.news import tell_after_commit
from tunesmith_server.db.tables import Base, EventRow, FineTuneRow, IdempotencyRow, OutboxRow, StepMetricRow
from tunesmith_server.fine_tunes.announcements import announcement
from tunesmith_server.fine_tunes.events import NewEvent
from tunesmith_server.fine_tunes.state import TERMINAL, State, may_follow
from tunesmith_server.ids import new_id

JOB = "job"
ESTIMATE = "estimate"
IMPORT = "import"
"""Kinds of rows: an estimate is a job that ends after its preflight, an import one that makes a model of an uploaded
file in its place; neither is in a list of jobs."""

_LOSSES = ("train_loss", "valid_loss", "full_valid_loss")
_JOBS = Base.metadata.tables[FineTuneRow.__tablename__]
_INSERT_JOB = insert_into(_JOBS)
_INSERT_EVENT = insert_into(Base.metadata.tables[EventRow.__tablename__])


@dataclass(frozen=True, slots=True)
class Standing:
    """What a job's run must know, as the write that returned it has left the job."""

    epoch: int
    state: State
    cancel_requested: bool
    preempt_requested: bool


async def insert(session: AsyncSession, row: FineTuneRow, *events: NewEvent) -> None:
    """Adds a job in its first state together with the first lines of its history."""
    row.event_count = len(events)
    # Not by the session: its unit of work takes longer for two rows than the database.
    await session.execute(_INSERT_JOB, _columns(row))
    lines = [_event(row.id, number, event, row.created_at) for number, event in enumerate(events, 1)]
    await session.execute(_INSERT_EVENT, lines)
    tell_after_commit(session, row.id)


async def transition(
    session: AsyncSession,
    job_id: str,
    expected: Set[State],
    to: State,
    *,
    lease: str | None,
    now: int,
    events: Sequence[NewEvent],
    changes: Mapping[str, Any] | None = None,
    auto_start: bool | None = None,
) -> bool:
    """Moves the job to `to` if it is in one of `expected` and `lease` is its lease token (None: it has none).

    Other columns in `changes` and the events are written with it. False: somebody else was faster, nothing changed.
    `auto_start`: only while the job's own is this one, which its user may change at any moment.
    A job whose cancellation was asked for moves to cancelled only: its user has been told so.
    """
    conditions = [*_in_states(expected, to), _leased_by(lease)]
    if to is not State.CANCELLED:
        conditions.append(FineTuneRow.cancel_requested.is_(False))
    if auto_start is not None:
        conditions.append(FineTuneRow.auto_start.is_(auto_start))
    values = {**(changes or {}), "state": to.value}
    return await _compare_and_set(session, job_id, conditions, values, events, now) is not None


async def claim(
    session: AsyncSession,
    job_id: str,
    expected: State,
    to: State,
    *,
    attempt_id: str,
    lease_expires_at: float,
    now: int,
    events: Sequence[NewEvent],
) -> int | None:
    """Gives the job to a new attempt and returns its epoch; None when the job is no longer free."""
    conditions = [*_in_states({expected}, to), _leased_by(None)]
    values = {
        "state": to.value,
        "lease_token": attempt_id,
        "lease_expires_at": lease_expires_at,
        "epoch": FineTuneRow.epoch + 1,
        "last_sequence": 0,
        "progress": None,
    }
    standing = await _compare_and_set(session, job_id, conditions, values, events, now)
    return None if standing is None else standing.epoch


async def amend(
    session: AsyncSession,
    job_id: str,
    *,
    lease: str | None,
    now: int,
    events: Sequence[NewEvent] = (),
    changes: Mapping[str, Any] | None = None,
    newer_than_sequence: int | None = None,
    expected: Set[State] | None = None,
) -> Standing | None:
    """Writes columns other than the state of a job that has not ended, under the same lease rule as `transition`.

    None: nothing changed. `newer_than_sequence` refuses a heartbeat that was delivered before. Asking for
    cancellation is written once. `expected`: only while the job is in one of these states.
    """
    conditions = [FineTuneRow.state.not_in(TERMINAL), _leased_by(lease)]
    if changes is not None and changes.get("cancel_requested"):
        conditions.append(FineTuneRow.cancel_requested.is_(False))
    if expected is not None:
        conditions.append(FineTuneRow.state.in_([state.value for state in expected]))
    if newer_than_sequence is not None:
        conditions.append(FineTuneRow.last_sequence < newer_than_sequence)
    return await _compare_and_set(session, job_id, conditions, changes or {}, events, now)


async def get(session: AsyncSession, job_id: str, project_id: str | None = None) -> FineTuneRow | None:
    """The job as it is now, or None; with a project, only if it is that project's."""
    query = select(FineTuneRow).where(FineTuneRow.id == job_id).execution_options(populate_existing=True)
    if project_id is not None:
        query = query.where(FineTuneRow.project_id == project_id)
    return await session.scalar(query)


async def get_many(session: AsyncSession, job_ids: Sequence[str]) -> dict[str, FineTuneRow]:
    """Those of the jobs that exist, by id."""
    query = select(FineTuneRow).where(FineTuneRow.id.in_(job_ids)).execution_options(populate_existing=True)
    return {job.id: job for job in await session.scalars(query)}


async def list_page(
    session: AsyncSession,
    project_id: str,
    *,
    after: FineTuneRow | None,
    limit: int,
    metadata: Mapping[str, str] | None,
) -> list[FineTuneRow]:
    """The project's jobs, newest first.

    `metadata`: pairs that must all match; an empty mapping selects jobs without metadata, None selects all.
    """
    query = select(FineTuneRow).where(FineTuneRow.project_id == project_id, FineTuneRow.kind == JOB)
    if metadata is not None and not metadata:
        query = query.where(FineTuneRow.user_metadata.is_(None))
    for key, value in (metadata or {}).items():
        query = query.where(has_pair(session, FineTuneRow.user_metadata, key, value))
    if after is not None:
        query = query.where(tuple_(FineTuneRow.position, FineTuneRow.id) < (after.position, after.id))
    query = query.order_by(FineTuneRow.position.desc(), FineTuneRow.id.desc()).limit(limit)
    return list(await session.scalars(query))


async def find_repeated(session: AsyncSession, project_id: str, body_hash: str, since: int) -> FineTuneRow | None:
    """The newest job that the same create call made since then and that can still be of use, or None."""
    query = (
        select(FineTuneRow)
        .where(FineTuneRow.project_id == project_id, FineTuneRow.body_hash == body_hash)
        .where(FineTuneRow.created_at >= since, FineTuneRow.kind == JOB)
        .where(FineTuneRow.state.not_in((State.CANCELLED, State.FAILED)), FineTuneRow.cancel_requested.is_(False))
        .order_by(FineTuneRow.created_at.desc(), FineTuneRow.position.desc())
    )
    return await session.scalar(query.limit(1))


async def get_event(session: AsyncSession, job_id: str, event_id: str) -> EventRow | None:
    """One line of this job's history, or None."""
    return await session.scalar(select(EventRow).where(EventRow.id == event_id, EventRow.job_id == job_id))


async def list_events(session: AsyncSession, job_id: str, *, after: EventRow | None, limit: int) -> list[EventRow]:
    """The job's history, newest first."""
    query = select(EventRow).where(EventRow.job_id == job_id)
    if after is not None:
        query = query.where(EventRow.number < after.number)
    return list(await session.scalars(query.order_by(EventRow.number.desc()).limit(limit)))


async def list_events_since(session: AsyncSession, job_id: str, number: int, limit: int) -> list[EventRow]:
    """The job's history after the event with this number, oldest first."""
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.number > number)
    return list(await session.scalars(query.order_by(EventRow.number).limit(limit)))


async def list_metrics(session: AsyncSession, job_id: str, *, after: int, limit: int) -> list[StepMetricRow]:
    """Measures of the job's steps after step `after`, first step first."""
    query = select(StepMetricRow).where(StepMetricRow.job_id == job_id, StepMetricRow.step > after)
    return list(await session.scalars(query.order_by(StepMetricRow.step).limit(limit)))


async def count_metrics(session: AsyncSession, job_id: str) -> int:
    """How many of the job's steps have measures."""
    return await session.scalar(select(func.count()).where(StepMetricRow.job_id == job_id)) or 0


async def list_losses(session: AsyncSession, job_id: str, *, stored: int, about: int) -> Sequence[Row[Any]]:
    """step, train_loss, valid_loss and full_valid_loss of about so many of the job's `stored` steps, first step first.

    They are evenly spaced, from the first to the last; besides them it is every step with a validation loss.
    """
    numbered = (
        select(
            StepMetricRow.step,
            # Counted, not by the step itself: a run need not report each of its steps.
            func.row_number().over(order_by=StepMetricRow.step).label("number"),
            *(StepMetricRow.data[name].as_float().label(name) for name in _LOSSES),
        )
        .where(StepMetricRow.job_id == job_id)
        .subquery()
    )
    every = -(-stored // about)
    kept = numbered.c
    query = select(kept.step, *(kept[name] for name in _LOSSES)).order_by(kept.step)
    if every > 1:
        spaced = or_(kept.number % every == 1, kept.number >= stored)
        query = query.where(or_(spaced, kept.valid_loss.is_not(None), kept.full_valid_loss.is_not(None)))
    return (await session.execute(query)).all()


async def get_idempotency(session: AsyncSession, project_id: str, key: str) -> IdempotencyRow | None:
    """What a create call with this key made before, or None."""
    return await session.get(IdempotencyRow, (project_id, key))


async def insert_idempotency(session: AsyncSession, row: IdempotencyRow) -> None:
    """Remembers a create call; raises IntegrityError when another call with the key was faster."""
    session.add(row)
    await session.flush()


async def _compare_and_set(
    session: AsyncSession,
    job_id: str,
    conditions: Sequence[ColumnElement[bool]],
    values: Mapping[str, Any],
    events: Sequence[NewEvent],
    now: int,
) -> Standing | None:
    """Writes values, events and what the outside must hear of if all conditions hold; None when one does not."""
    statement = (
        update(FineTuneRow)
        .where(FineTuneRow.id == job_id, *conditions)
        # Counting in the same statement numbers events without gaps, whoever else writes.
        .values(**values, event_count=FineTuneRow.event_count + len(events))
        .returning(
            FineTuneRow.event_count,
            FineTuneRow.epoch,
            FineTuneRow.project_id,
            FineTuneRow.kind,
            FineTuneRow.state,
            FineTuneRow.cancel_requested,
            FineTuneRow.preempt_requested,
        )
        .execution_options(synchronize_session=False)
    )
    written = (await session.execute(statement)).one_or_none()
    if written is None:
        return None
    first = written.event_count - len(events) + 1
    if events:
        lines = [_event(job_id, first + index, event, now) for index, event in enumerate(events)]
        await session.execute(_INSERT_EVENT, lines)
    news = announcement(values, cancel_requested=written.cancel_requested)
    if news is not None and written.kind == JOB:
        session.add(_outbox_row(job_id, written.project_id, news, now))
        await session.flush()
    tell_after_commit(session, job_id)
    return Standing(written.epoch, State(written.state), written.cancel_requested, written.preempt_requested)


def _in_states(expected: Set[State], to: State) -> list[ColumnElement[bool]]:
    forbidden = [state for state in expected if not may_follow(state, to)]
    if forbidden:
        raise ValueError(f"{to} may not follow {forbidden}")
    return [FineTuneRow.state.in_([state.value for state in expected])]


def _leased_by(lease: str | None) -> ColumnElement[bool]:
    return FineTuneRow.lease_token.is_(None) if lease is None else FineTuneRow.lease_token == lease


def _columns(row: FineTuneRow) -> dict[str, Any]:
    """What is set of a row that no session knows; the rest has its defaults."""
    return {name: value for name, value in vars(row).items() if name in _JOBS.c}


def _event(job_id: str, number: int, event: NewEvent, now: int) -> dict[str, Any]:
    return {
        "id": new_id("ftevent-"),
        "job_id": job_id,
        "number": number,
        "created_at": now,
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": event.data,
    }


def _outbox_row(job_id: str, project_id: str, news: str, now: int) -> OutboxRow:
    return OutboxRow(id=new_id("evt_"), project_id=project_id, type=news, subject_id=job_id, created_at=now)
