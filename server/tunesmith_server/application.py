"""Owns the wiring: settings in, one object with every part of the control plane out.

It must not know transports: http_app.py and grpc_app.py put this core on the wire.
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
