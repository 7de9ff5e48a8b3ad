"""Owns how many requests a gateway takes on at once, and that no model's requests crowd out those of others.

It must not know requests, engines or keys.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from tunesmith_inference.errors import overloaded


class Admission:
    """At most `limit` requests under way or waiting; from half of it on, no model has more than its share.

    The share is the limit by the number of models that are asked for: one alone may have it all.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._models: Counter[str] = Counter()

    @property
    def under_way(self) -> int:
        """Requests that are counted now."""
        return self._models.total()

    @contextlib.contextmanager
    def admit(self, model: str) -> Iterator[None]:
        """Counts a request inside the block; raises 503 overloaded."""
        total, asked_for = self._models.total(), len(self._models.keys() | {model})
        share = self._limit / asked_for
        if total >= self._limit or (2 * total >= self._limit and self._models[model] >= share):
            self._forget(model)
            raise overloaded()
        self._models[model] += 1
        try:
            yield
        finally:
            self._models[model] -= 1
            self._forget(model)

    def _forget(self, model: str) -> None:
        if not self._models[model]:
            del self._models[model]
