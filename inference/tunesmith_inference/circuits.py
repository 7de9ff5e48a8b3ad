"""Owns whom it is no use to ask for a while: after failures in a row nobody is sent there, then one request as a trial.

It must not know who is asked, or for what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

_MAX_FAILURES = 3
_OPEN_SECONDS = 5.0


@dataclass(slots=True)
class _Circuit:
    """Failures since it last worked; `closed_to` is when the next trial may begin."""

    failures: int = 0
    closed_to: float = float("-inf")


class Circuits:
    """One circuit for each address. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._circuits: dict[str, _Circuit] = {}

    def may_ask(self, address: str) -> bool:
        """Whether a request may go there now."""
        circuit = self._circuits.get(address)
        return circuit is None or circuit.failures < _MAX_FAILURES or self._clock() >= circuit.closed_to

    def begin(self, address: str) -> None:
        """A request goes there. Where it is a trial, no other one follows until it has ended or is long under way."""
        circuit = self._circuits.get(address)
        if circuit is not None:
            circuit.closed_to = self._clock() + _OPEN_SECONDS

    def failed(self, address: str) -> None:
        """A request got no answer there."""
        circuit = self._circuits.setdefault(address, _Circuit())
        circuit.failures += 1
        circuit.closed_to = self._clock() + _OPEN_SECONDS

    def worked(self, address: str) -> None:
        """A request was answered there."""
        self._circuits.pop(address, None)

    def keep_only(self, addresses: Collection[str]) -> None:
        """Forgets all others."""
        for address in self._circuits.keys() - set(addresses):
            del self._circuits[address]
