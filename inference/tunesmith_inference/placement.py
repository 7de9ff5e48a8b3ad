"""Owns which of several gateways answers for a model, and which one is to load it: pure, over what each says of itself.

It must not know the network, engines or time. A model that is loaded nowhere has a home: the gateway that comes first
in an order that its revision gives to their names. So all gateways choose the same one, and where one comes or goes,
only models move that it has or had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith_inference.router import Kind, Servable

_CALM_REQUESTS = 32
"""A gateway with no more requests than that is never overloaded."""
_BOUND = 1.25
"""One with more than so many times the mean is."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway as the others see it. `name` outlives a restart, `in_flight` counts what it answers itself.

    `ready` and `coming` are the revisions in its engines and those on their way there; `has_room` is for one more
    engine, `on_demand` names what deployments stand for and what it does not load before somebody asks for it.
    """

    name: str
    address: str
    in_flight: int = 0
    has_room: bool = True
    ready: frozenset[str] = frozenset()
    coming: frozenset[str] = frozenset()
    on_demand: frozenset[str] = frozenset()

    def holds(self, revision: str) -> bool:
        """Whether it has the revision or soon will."""
        return revision in self.ready or revision in self.coming


def place(servable: Servable, here: Peer, peers: Sequence[Peer]) -> Peer:
    """Who answers a request: here where it is ready, the least busy peer where it is, where it is coming, its home."""
    everyone = (here, *peers)
    ready = [peer for peer in everyone if servable.revision in peer.ready]
    coming = [peer for peer in everyone if servable.revision in peer.coming]
    for holders in (ready, coming):
        if here in holders:
            return here
        if holders:
            return min(holders, key=lambda peer: (peer.in_flight, _rank(servable, peer)))
    return _home(servable, everyone)


def is_to_load(servable: Servable, here: Peer, peers: Sequence[Peer]) -> bool:
    """Whether a model is to be loaded here ahead of demand: this is its home, and no peer has it."""
    return not any(peer.holds(servable.revision) for peer in peers) and _home(servable, (here, *peers)) is here


def is_to_spread(servable: Servable, here: Peer, peers: Sequence[Peer]) -> bool:
    """Whether a model is to be loaded here as well: those that have it are overloaded, and it would be next here."""
    everyone = (here, *peers)
    holders = [peer for peer in everyone if peer.holds(servable.revision)]
    if not holders or not all(_is_overloaded(peer, everyone) for peer in holders):
        return False
    rest = [peer for peer in everyone if peer not in holders]
    if here not in rest or _home(servable, rest) is not here:
        return False
    return _fits(servable, here) and not _is_overloaded(here, everyone)


def is_ready(servable: Servable, here: Peer, peers: Sequence[Peer], *, is_ready_here: bool) -> bool:
    """Whether a deployment may go over to a model: it is ready somewhere, or comes only when asked for."""
    if any(servable.revision in peer.ready for peer in peers):
        return True
    answering = place(servable, here, peers)
    return is_ready_here if answering is here else servable.revision in answering.on_demand


def _home(servable: Servable, among: Sequence[Peer]) -> Peer:
    """Overloaded gateways are passed over, and those that would have to stop another engine for it."""
    return min(
        among,
        key=lambda peer: (not _fits(servable, peer), _is_overloaded(peer, among), _rank(servable, peer)),
    )


def _fits(servable: Servable, peer: Peer) -> bool:
    return peer.has_room or (servable.kind is Kind.ADAPTER and peer.holds(servable.base_revision))


def _is_overloaded(peer: Peer, among: Sequence[Peer]) -> bool:
    mean = sum(each.in_flight for each in among) / len(among)
    return peer.in_flight > max(_CALM_REQUESTS, _BOUND * mean)


def _rank(servable: Servable, peer: Peer) -> bytes:
    return hashlib.sha256(f"{servable.revision}\0{peer.name}".encode()).digest()
