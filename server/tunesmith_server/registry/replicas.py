"""Owns what gateways say their engines hold and are busy with, until they say otherwise or fall silent.

It must not know transports or names of models. It lies in the database, so that all control planes and all gateways
have the same picture. Gateways tell it every second; what has hardly changed is not written again each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.clock import Clock
from tunesmith_server.db.session import Database
from tunesmith_server.db.tables import GatewayRow, JsonObject
from tunesmith_server.registry import replica_repository as repository

SILENT_SECONDS = 30.0
"""A gateway that says nothing for so long is gone, and its engines with it."""
_WRITE_SECONDS = 10.0
_FEW_REQUESTS = 16


class ReplicaState(StrEnum):
    """How far an engine is with a revision, the furthest first."""

    READY = "ready"
    DRAINING = "draining"
    PROBING = "probing"
    LOADING = "loading"
    FETCHING = "fetching"
    FAILED = "failed"


_COMING = (ReplicaState.PROBING, ReplicaState.LOADING, ReplicaState.FETCHING)


@dataclass(frozen=True, slots=True)
class Replica:
    """One revision in one engine; `since` in Unix seconds, `in_flight` requests."""

    revision: str
    gateway: str
    engine: str
    state: ReplicaState
    reason: str | None
    since: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Presence:
    """What other gateways need to know of one; fields as in serving.proto."""

    name: str
    address: str
    in_flight: int
    has_room: bool
    on_demand: list[str]


@dataclass(frozen=True, slots=True)
class Peer:
    """Another gateway, with the revisions that are ready there and those that soon will be."""

    presence: Presence
    ready: tuple[str, ...]
    coming: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Serving:
    """How far the furthest replica of a revision is, `not_loaded` where there is none, and why if it failed."""

    state: str
    reason: str | None
    replicas: tuple[Replica, ...]


class Replicas:
    """The last report of each gateway."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def take(self, gateway: str, replicas: Sequence[Replica], presence: Presence | None = None) -> list[Peer]:
        """Puts a gateway's report in the place of its last one; gives the other gateways that have a presence.

        One that has none is not told of others.
        """
        now = self._clock()
        async with self._database.read() as session:
            rows = await repository.heard_since(session, now - SILENT_SECONDS)
        told = GatewayRow(
            id=gateway,
            replicas=[_stored(replica) for replica in replicas],
            presence=None if presence is None else asdict(presence),
            heard_at=now,
        )
        others = [row for row in rows if row.id != gateway]
        before = next((row for row in rows if row.id == gateway), None)
        # A gateway that was started anew is another one at the same address.
        followed = [row for row in others if _address(row) == _address(told) is not None]
        if before is None or followed or now - before.heard_at >= _WRITE_SECONDS or _differs(before, told):
            async with self._database.write() as session:
                await repository.record(session, told)
                await repository.forget(session, [row.id for row in followed], now - SILENT_SECONDS)
        return [_peer(row) for row in others if presence and row.presence and row not in followed]

    async def of(self, revision: str) -> Serving:
        """What is known of a revision."""
        async with self._database.read() as session:
            return await self.seen(session, revision)

    async def seen(self, session: AsyncSession, revision: str) -> Serving:
        """What is known of a revision, in the caller's transaction."""
        order = list(ReplicaState)
        rows = await repository.heard_since(session, self._clock() - SILENT_SECONDS)
        found = sorted(
            (replica for row in rows for replica in _replicas(row) if replica.revision == revision),
            key=lambda replica: (order.index(replica.state), replica.gateway, replica.engine),
        )
        if not found:
            return Serving("not_loaded", None, ())
        return Serving(found[0].state, found[0].reason, tuple(found))


def _differs(before: GatewayRow, told: GatewayRow) -> bool:
    """Whether others would do something else if they knew."""
    if [_quiet(each) for each in before.replicas] != [_quiet(each) for each in told.replicas]:
        return True
    if before.presence is None or told.presence is None:
        return before.presence is not told.presence
    was, now = before.presence["in_flight"], told.presence["in_flight"]
    return _quiet(before.presence) != _quiet(told.presence) or 4 * abs(now - was) > max(was, _FEW_REQUESTS)


def _quiet(stored: JsonObject) -> JsonObject:
    """Without what changes all the time."""
    return {name: value for name, value in stored.items() if name != "in_flight"}


def _address(row: GatewayRow) -> str | None:
    return row.presence["address"] if row.presence else None


def _stored(replica: Replica) -> JsonObject:
    return {name: value for name, value in asdict(replica).items() if name != "gateway"}


def _replicas(row: GatewayRow) -> Iterator[Replica]:
    for stored in row.replicas:
        yield Replica(**stored | {"gateway": row.id, "state": ReplicaState(stored["state"])})


def _peer(row: GatewayRow) -> Peer:
    presence = Presence(**row.presence or {})
    return Peer(presence, _in(row, (ReplicaState.READY,)), _in(row, _COMING))


def _in(row: GatewayRow, states: Iterable[ReplicaState]) -> tuple[str, ...]:
    return tuple(replica.revision for replica in _replicas(row) if replica.state in states)
