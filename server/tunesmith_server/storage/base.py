"""Owns what the control plane asks of object storage.

It must not know a provider; keys are '/'-separated and never start with '/'.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A URL that works without further credentials until it expires, and the headers that must be sent with it."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a listing says of an object."""

    key: str
    changed_at: float
    """Unix seconds, by the store's clock, at which it came to its key; never earlier than that."""


class ObjectNotFoundError(Exception):
    """No object has this key."""


class ObjectStore(Protocol):
    """Every method may raise UnavailableError (errors.py) when the store cannot be reached or is full."""

    async def put_file(self, key: str, source: Path) -> None:
        """Stores the bytes of a local file; readers see the whole object or none."""

    async def put_bytes(self, key: str, content: bytes) -> None:
        """Stores small content; readers see the whole object or none."""

    def read(self, key: str) -> AsyncIterator[bytes]:
        """Streams the content in chunks of at most 1 MiB; raises ObjectNotFoundError."""

    async def size(self, key: str) -> int | None:
        """Bytes of the object, or None when there is none."""

    async def copy(self, source: str, target: str) -> None:
        """Copies within the store; raises ObjectNotFoundError."""

    async def delete(self, key: str) -> None:
        """Removes the object; no error when there is none."""

    async def list(self, prefix: str) -> list[str]:
        """Keys that start with `prefix`, sorted."""

    async def remove_abandoned(self) -> None:
        """Removes what writers left half done when they crashed a day or longer ago."""

    def scan(self, folder: str) -> AsyncIterator[Sequence[StoredObject]]:
        """All objects below a folder ("a/b", without a slash at the end), in pages of at most 1,000, in any order.

        What changes meanwhile may be in it or not.
        """

    async def presign_get(self, key: str, expires_seconds: int) -> SignedRequest:
        """A request that reads the object."""

    async def presign_put(self, key: str, expires_seconds: int, *, size: int, sha256: str) -> SignedRequest:
        """A request that writes exactly `size` bytes to the key; the store may check `sha256` (hex) as well."""
