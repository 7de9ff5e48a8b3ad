"""Owns which other gateways there are, as the control plane tells, and what that means for each model.

It must not know requests or how one gateway asks another; placement.py decides.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tunesmith_inference import placement
from tunesmith_inference.circuits import Circuits
from tunesmith_inference.placement import Peer
from tunesmith_inference.router import Kind, Servable


class Peers:
    """The other gateways; `alone` has none. `here` is this one as it is at the moment."""

    def __init__(self, here: Callable[[], Peer], circuits: Circuits, *, alone: bool) -> None:
        self._here = here
        self._circuits = circuits
        self._alone = alone
        self._told: Sequence[Peer] | None = () if alone else None
        self._passed: Counter[str] = Counter()

    def presence(self) -> Peer | None:
        """What others are to know of this gateway; None where it works alone."""
        return None if self._alone else self._here()

    def leave(self) -> None:
        """This gateway stops: others are told no address of it any more, and it passes nothing on."""
        self._alone, self._told = True, ()

    def follow(self, told: Sequence[Peer]) -> bool:
        """Takes the others that live now; True where one comes or goes, or holds something else than before."""
        before, self._told = self._told, () if self._alone else tuple(told)
        self._circuits.keep_only({peer.address for peer in told})
        return before is None or _calm(before) != _calm(self._told)

    def choose(self, servable: Servable, but: Collection[str] = ()) -> Peer | None:
        """Who answers for the model, none of those addresses; None for this gateway itself."""
        others = [peer for peer in self._living() if peer.address not in but]
        if not others:
            return None
        here = self._here()
        chosen = placement.place(servable, here, others)
        return None if chosen is here else chosen

    def elsewhere(self) -> Callable[[Servable], bool]:
        """Whether a model, as things are now, is not for this gateway to load ahead of demand.

        Before it has heard of others nobody knows: only base models are.
        """
        if self._told is None:
            return lambda servable: servable.kind is not Kind.BASE
        others = self._living()
        if not others:
            return lambda _: False
        here = self._here()
        return lambda servable: not placement.is_to_load(servable, here, others)

    def is_to_spread(self, servable: Servable) -> bool:
        """Whether the model is to be loaded here as well, because others have too much to do with it."""
        return placement.is_to_spread(servable, self._here(), self._living())

    def is_ready(self, servable: Servable, *, is_ready_here: bool) -> bool:
        """Whether a deployment may go over to the model."""
        others = self._living()
        if not others:
            return is_ready_here
        return placement.is_ready(servable, self._here(), others, is_ready_here=is_ready_here)

    def states(self) -> list[dict[str, Any]]:
        """What is known of each, for people who look."""
        living = {peer.address for peer in self._living()}
        return [
            {"name": peer.name, "address": peer.address, "in_flight": peer.in_flight, "asked": peer.address in living}
            for peer in self._told or ()
        ]

    @contextlib.contextmanager
    def passing(self, peer: Peer) -> Iterator[None]:
        """A request is with the peer inside the block, which counts before the peer itself tells."""
        self._circuits.begin(peer.address)
        self._passed[peer.address] += 1
        try:
            yield
        finally:
            self._passed[peer.address] -= 1

    def _living(self) -> list[Peer]:
        return [
            replace(peer, in_flight=max(peer.in_flight, self._passed[peer.address]))
            for peer in self._told or ()
            if self._circuits.may_ask(peer.address)
        ]


def _calm(peers: Sequence[Peer]) -> list[Peer]:
    """Without what changes with every request."""
    return [replace(peer, in_flight=0) for peer in peers]
