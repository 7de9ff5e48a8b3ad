"""Owns which engines run and which one serves a model: started on demand, bounded, loaded ahead of demand.

It must not know HTTP, keys or how an engine is talked to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from typing import Any

from tunesmith_inference.config import Settings
from tunesmith_inference.deployment import Command, Deployment, Target
from tunesmith_inference.engine import vllm_command
from tunesmith_inference.replicas import Replica
from tunesmith_inference.revisions import NotFetched, RevisionCache
from tunesmith_inference.router import Kind, Servable
from tunesmith_inference.served_set import Unservable
from tunesmith_inference.vllm import EngineUnavailable

_log = logging.getLogger(__name__)


class Fleet:
    """All engines of this gateway. They live as long as `run` does."""

    def __init__(self, settings: Settings, revisions: RevisionCache, command: Command = vllm_command) -> None:
        self._settings = settings
        self._revisions = revisions
        self._command = command
        self._deployments: dict[str, Deployment] = {}
        self._models: tuple[Servable, ...] = ()
        self._creating = asyncio.Lock()
        self._released = asyncio.Event()
        self._wake = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lease(self, servable: Servable) -> AsyncIterator[Target]:
        """What serves the model, started and loaded if need be; it stays inside the block.

        Waits without limit; raises Unservable or NotFetched.
        """
        deployment = await self._deployment(servable)
        try:
            async with deployment.lease(servable) as target:
                yield target
        finally:
            self._released.set()

    def follow(self, models: Iterable[Servable]) -> None:
        """Takes the models that exist now, to load ahead of demand what is likely to be asked for."""
        self._models = tuple(models)
        self._wake.set()

    async def run(self) -> None:
        """Prepares models ahead of demand until cancelled, then stops every engine."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._prepare()
        finally:
            await asyncio.gather(*(deployment.stop() for deployment in self._deployments.values()))

    def states(self) -> list[dict[str, Any]]:
        """What each engine does, for people who look."""
        return [deployment.state() for deployment in self._deployments.values()]

    def replicas(self) -> list[Replica]:
        """What all engines hold."""
        return [replica for deployment in self._deployments.values() for replica in deployment.replicas()]

    async def _prepare(self) -> None:
        """Starts base engines while there is room, and loads final adapters, the newest first."""
        for servable in self._models:
            if servable.kind is Kind.BASE and len(self._deployments) < self._settings.max_engines:
                await self._deployment(servable)
        newest_first = sorted(self._models, key=lambda model: -model.created)
        adapters = [model for model in newest_first if model.kind is Kind.ADAPTER and not model.checkpoint]
        for servable in adapters[: self._settings.max_loaded_adapters - 1]:
            deployment = self._deployments.get(_key(servable))
            served = deployment.served if deployment else None
            if served is None or served.knows(servable.revision):
                continue
            with contextlib.suppress(Unservable, NotFetched, EngineUnavailable):
                async with served.lease(servable):
                    pass

    async def _deployment(self, servable: Servable) -> Deployment:
        key = _key(servable)
        found = self._deployments.get(key)
        if found is not None and not found.given_up:
            return found
        async with self._creating:
            found = self._deployments.get(key)
            if found is not None and not found.given_up:
                return found
            if found is not None:
                del self._deployments[key]
            await self._make_room()
            made = Deployment(servable, self._settings, self._revisions, self._command, self._wake.set)
            self._deployments[key] = made
            return made

    async def _make_room(self) -> None:
        """Stops the least recently used idle engine, a base model's last of all, waiting for one if it must."""
        while len(self._deployments) >= self._settings.max_engines:
            idle = [(key, deployment) for key, deployment in self._deployments.items() if not deployment.users]
            if idle:
                key, victim = min(idle, key=lambda pair: (pair[1].kind is Kind.BASE, pair[1].last_used))
                del self._deployments[key]
                _log.info("stopping an idle engine to make room")
                await victim.stop()
            else:
                self._released.clear()
                await self._released.wait()


def _key(servable: Servable) -> str:
    """Adapters live in the engine of their base model, full weights in one of their own."""
    return f"full/{servable.revision}" if servable.kind is Kind.FULL else f"base/{servable.base_revision}"
