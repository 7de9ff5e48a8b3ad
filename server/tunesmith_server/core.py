"""Owns the parts that every service is built from.

It must not know any service; application.py makes the parts and hands them round.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith_server.auth import Signer
from tunesmith_server.clock import Clock
from tunesmith_server.config import Settings
from tunesmith_server.db.session import Database
from tunesmith_server.storage.base import ObjectStore


@dataclass(frozen=True, slots=True)
class Core:
    """The parts that every service is built from."""

    settings: Settings
    database: Database
    store: ObjectStore
    signer: Signer
    clock: Clock
