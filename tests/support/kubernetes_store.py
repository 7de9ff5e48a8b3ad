"""Owns what an API server keeps: objects with resource versions, and the changes that a watch may still ask for.

It must not know HTTP, nor what the objects mean.
"""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]


class AlreadyExistsError(Exception):
    """The name is taken."""


class GoneError(Exception):
    """Changes after this version have been forgotten: list anew."""


@dataclass(frozen=True, slots=True)
class Change:
    """One write, in the words of a watch."""

    version: int
    resource: str
    type: str
    object: Object


class Store:
    """Objects by resource (`pods`), namespace and name. What comes out is a copy."""

    def __init__(self) -> None:
        self.version = 1
        self.news = asyncio.Event()
        """Set by the next write, which puts another one in its place."""
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._history: list[Change] = []
        self._forgotten = 0

    def create(self, resource: str, thing: Object, namespace: str = "") -> Object:
        """Stores a new object; raises AlreadyExistsError."""
        made = copy.deepcopy(thing)
        metadata = made["metadata"]
        key = (resource, namespace, metadata["name"])
        if key in self._objects:
            raise AlreadyExistsError
        metadata |= {"namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": now()}
        return self._write("ADDED", key, made)

    def put(self, resource: str, thing: Object) -> Object:
        """Stores a changed object."""
        metadata = thing["metadata"]
        return self._write("MODIFIED", (resource, metadata["namespace"], metadata["name"]), copy.deepcopy(thing))

    def remove(self, resource: str, thing: Object) -> None:
        """Takes an object out for good."""
        metadata = thing["metadata"]
        key = (resource, metadata["namespace"], metadata["name"])
        self._write("DELETED", key, copy.deepcopy(thing))
        del self._objects[key]

    def get(self, resource: str, name: str, namespace: str = "") -> Object | None:
        """The object, or None."""
        found = self._objects.get((resource, namespace, name))
        return copy.deepcopy(found) if found else None

    def list(self, resource: str, labels: Mapping[str, str] | None = None) -> list[Object]:
        """Objects of all namespaces that have these labels."""
        return [
            copy.deepcopy(thing)
            for (kind, _, _), thing in self._objects.items()
            if kind == resource and has_labels(thing, labels or {})
        ]

    def compact(self) -> None:
        """Forgets the changes so far, as etcd does every few minutes."""
        self._forgotten = self.version
        self._history.clear()
        self._announce()

    def history(self) -> Sequence[Change]:
        """The changes that have not been forgotten."""
        return tuple(self._history)

    def forgets(self, version: int) -> bool:
        """Whether changes after this version can no longer be told."""
        return version < self._forgotten

    async def changes(self, resource: str, after: int) -> AsyncIterator[Change]:
        """Every change from a version on, without end; raises GoneError."""
        while True:
            if self.forgets(after):
                raise GoneError
            news = self.news
            for change in [each for each in self._history if each.version > after]:
                after = change.version
                if change.resource == resource:
                    yield change
            await news.wait()

    def _write(self, kind: str, key: tuple[str, str, str], thing: Object) -> Object:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self._objects[key] = thing
        self._history.append(Change(self.version, key[0], kind, copy.deepcopy(thing)))
        self._announce()
        return copy.deepcopy(thing)

    def _announce(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


def has_labels(thing: Object, labels: Mapping[str, str]) -> bool:
    """Whether the object has all of these."""
    held: dict[str, str] = thing["metadata"].get("labels", {})
    return labels.items() <= held.items()


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
