"""Owns which engines run and which one serves a model: started on demand, bounded, loaded ahead of demand.

It must not know HTTP, keys or how an engine is talked to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from tunesmith_inference.config import Settings
from tunesmith_inference.engine_host import Command, EngineHost, NotAskedFor, Target
from tunesmith_inference.engine_memory import GIBIBYTE
from tunesmith_inference.replicas import Replica
from tunesmith_inference.retries import Sleep
from tunesmith_inference.revisions import RevisionCache
from tunesmith_inference.router import Kind, Servable
from tunesmith_inference.vllm import EngineUnavailable

_LOOK_SECONDS = 5.0
_NEWS_SECONDS = 2.0
"""A model may be asked for before the news of its name has come; its engine stays for so long."""

_log = logging.getLogger(__name__)


class Fleet:
    """All engines of this gateway. They live as long as `run` does.

    `loaded` is told the name of each model that has come to answer, `elsewhere` gives what says which models are, as
    things are now, for other gateways to load ahead of demand. `sleep` passes the time between tries.
    """

    def __init__(
        self,
        settings: Settings,
        revisions: RevisionCache,
        command: Command,
        loaded: Callable[[str], None],
        elsewhere: Callable[[], Callable[[Servable], bool]],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._revisions = revisions
        self._command = command
        self._loaded = loaded
        self._elsewhere = elsewhere
        self._sleep = sleep
        self._hosts: dict[str, EngineHost] = {}
        self._models: tuple[Servable, ...] = ()
        self._deployed: tuple[Servable, ...] = ()
        self._named: frozenset[str] = frozenset()
        self._pinned: frozenset[str] = frozenset()
        self._added: dict[str, Servable] = {}
        self._creating = asyncio.Lock()
        self._giving_memory = asyncio.Lock()
        self._needs: dict[str, int] = {}
        self._released = asyncio.Event()
        self._wake = asyncio.Event()
        self._resting: set[str] = set()

    @contextlib.asynccontextmanager
    async def lease(self, servable: Servable) -> AsyncIterator[Target]:
        """What serves the model, started and loaded if need be; it stays inside the block.

        Waits without limit; raises Unservable or NotFetched.
        """
        host = await self._host(servable)
        try:
            async with host.lease(servable) as target:
                yield target
        finally:
            self._released.set()
            if servable.revision not in self._named:
                self._wake.set()

    def follow(
        self, models: Iterable[Servable], deployed: Iterable[Servable] = (), pinned: Iterable[Servable] = ()
    ) -> None:
        """Takes the models that exist now, to load ahead of demand what is likely to be asked for.

        Those that deployments stand for come first, and new ones among them are tried anew where they have failed;
        `pinned` ones make room last.
        """
        before, self._models, self._deployed = self._deployed, tuple(models), tuple(deployed)
        for servable in set(self._deployed).difference(before):
            self._ask_anew(servable)
        self._named = frozenset(model.revision for model in self._models)
        self._pinned = frozenset(model.revision for model in pinned)
        keys = {_key(model) for model in self._models}
        self._resting &= keys
        self._needs = {key: needed for key, needed in self._needs.items() if key in keys}
        self._wake.set()

    def is_ready(self, servable: Servable) -> bool:
        """Whether a request for the model would be answered at once.

        Also where only a request starts its engine: where it has no room beside those that run, or rests.
        """
        host = self._hosts.get(_key(servable))
        if host is None:
            return not self._has_room(servable) or self._rests(servable)
        return host.is_ready(servable)

    def holds(self, servable: Servable) -> bool:
        """Whether the model is loaded, and proven."""
        host = self._hosts.get(_key(servable))
        return host is not None and host.is_ready(servable)

    @property
    def has_room(self) -> bool:
        """Whether one more engine may run beside those that do."""
        return len(self._hosts) < self._settings.max_engines

    def has_place(self, servable: Servable) -> bool:
        """Whether the model has its engine, or one would fit beside those that run."""
        return _key(servable) in self._hosts or self._has_room(servable)

    def on_demand(self) -> list[Servable]:
        """The deployed models that are loaded when somebody asks for them, and not before."""
        return [model for model in self._deployed if self.is_ready(model) and not self.holds(model)]

    def add(self, servable: Servable) -> None:
        """Has a model loaded at the next look that is for another gateway to load, if there is room."""
        self._added[servable.revision] = servable

    def look(self) -> None:
        """Has engines looked at now: one does not answer as it should."""
        self._wake.set()

    async def run(self) -> None:
        """Holds engines against what is wanted, on news and every few seconds, until cancelled; then stops them."""
        pause = min(_LOOK_SECONDS, self._settings.engine_idle_seconds / 4)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._end_unneeded()
                await self._prepare()
                again = asyncio.get_running_loop().call_later(pause, self._wake.set)
                await self._wake.wait()
                again.cancel()
        finally:
            await asyncio.gather(*(host.stop() for host in self._hosts.values()))

    def states(self) -> list[dict[str, Any]]:
        """What each engine does, for people who look."""
        return [host.state() for host in self._hosts.values()]

    def replicas(self) -> list[Replica]:
        """What all engines hold."""
        return [replica for host in self._hosts.values() for replica in host.replicas()]

    async def _prepare(self) -> None:
        """Starts base engines and those of deployed models while there is room, and loads adapters.

        First those that are deployed, then final ones, the newest first. What other gateways load is left to them, but
        of base models only until there is no other use for the room.
        """
        added, self._added = [model for model in self._added.values() if model in self._models], {}
        is_elsewhere = self._elsewhere()
        own = sorted((model for model in self._models if model.kind is Kind.BASE), key=is_elsewhere)
        wanted = added + [model for model in self._deployed if not is_elsewhere(model)]
        for servable in own + [model for model in wanted if model.kind is Kind.FULL]:
            if self._has_room(servable) and not self._rests(servable):
                await self._host(servable)
        newest_first = sorted(self._models, key=lambda model: -model.created)
        final = [model for model in newest_first if not model.checkpoint and not is_elsewhere(model)]
        adapters = {model.revision: model for model in wanted + final if model.kind is Kind.ADAPTER}
        for servable in list(adapters.values())[: self._settings.max_loaded_adapters - 1]:
            host = self._hosts.get(_key(servable))
            if host is None or host.served is None or host.served.knows(servable.revision):
                continue
            # Asked again: what was loaded before it has taken its time.
            if servable in added or not self._elsewhere()(servable):
                await host.served.preload(servable)

    async def _end_unneeded(self) -> None:
        """Stops idle engines of full weights, and unloads idle adapters, that no name points at; others may rest.

        What engines have lost by themselves is found here, too.
        """
        for key, host in list(self._hosts.items()):
            if self._hosts.get(key) is not host:
                continue  # it made room for another one while an engine was waited for
            if host.kind is Kind.BASE:
                with contextlib.suppress(EngineUnavailable):
                    await host.reconcile(self._named)
                continue
            idle = host.idle_seconds >= self._settings.engine_idle_seconds and not self._holds_pinned(host)
            named = host.revision in self._named or host.idle_seconds < _NEWS_SECONDS
            if host.users or (named and not idle):
                continue
            del self._hosts[key]
            self._resting.add(key)
            _log.info("stopping an engine that nobody asks for")
            await host.stop()
            self._released.set()

    async def _host(self, servable: Servable) -> EngineHost:
        key = _key(servable)
        found = self._hosts.get(key)
        if found is not None and not found.given_up:
            return found
        async with self._creating:
            found = self._hosts.get(key)
            if found is not None and not found.given_up:
                return found
            if found is not None:
                del self._hosts[key]
            await self._make_room(lambda: len(self._hosts) >= self._settings.max_engines)
            made = EngineHost(
                servable,
                self._settings,
                self._revisions,
                self._command,
                self._wake.set,
                self._is_pinned,
                lambda: self._deployed,
                self._room_for,
                self._loaded,
                self._sleep,
            )
            self._hosts[key] = made
            self._resting.discard(key)
            return made

    async def _room_for(self, host: EngineHost, needed: int) -> None:
        """Returns when an engine may take so many bytes of memory.

        Raises ValueError where it never may, and NotAskedFor where it would push another one out for nobody's sake.
        """
        budget = self._settings.engine_memory_bytes
        if budget is None:
            return
        key = next(key for key, other in self._hosts.items() if other is host)
        if needed > budget:
            raise ValueError(
                f"its engine would need {needed / GIBIBYTE:.1f} GiB of memory, and all engines together may have "
                f"{budget / GIBIBYTE:.1f}; see TUNESMITH_ENGINE_MEMORY_BYTES"
            )
        self._needs[key] = needed
        async with self._giving_memory:
            if not host.users and self._memory_taken() + needed > budget:
                del self._hosts[key]
                raise NotAskedFor
            await self._make_room(lambda: self._memory_taken() + needed > budget, sparing=host)
            host.memory_bytes = needed

    async def _make_room(self, is_full: Callable[[], bool], sparing: EngineHost | None = None) -> None:
        """Stops the least recently used idle engine but `sparing`, waiting for one if it must.

        A base model's after those of tuned models, one with something pinned last of all.
        """
        while is_full():
            idle = [(key, host) for key, host in self._hosts.items() if not host.users and host is not sparing]
            if idle:
                key, victim = min(
                    idle, key=lambda pair: (self._holds_pinned(pair[1]), pair[1].kind is Kind.BASE, pair[1].last_used)
                )
                del self._hosts[key]
                _log.info("stopping an idle engine to make room")
                await victim.stop()
            else:
                self._released.clear()
                await self._released.wait()

    def _ask_anew(self, servable: Servable) -> None:
        """Forgets that a model has failed: who deploys it wants it tried again."""
        key = _key(servable)
        host = self._hosts.get(key)
        if host is not None and host.has_failed:
            del self._hosts[key]
        elif host is not None and host.served is not None:
            host.served.ask_anew(servable.revision)

    def _memory_taken(self) -> int:
        return sum(host.memory_bytes for host in self._hosts.values())

    def _has_room(self, servable: Servable) -> bool:
        """Whether an engine for the model fits beside those that run, as far as its need is known."""
        budget = self._settings.engine_memory_bytes
        fits = budget is None or self._memory_taken() + self._needs.get(_key(servable), 0) <= budget
        return fits and len(self._hosts) < self._settings.max_engines

    def _rests(self, servable: Servable) -> bool:
        """Whether its engine was stopped because nobody asked for it."""
        return _key(servable) in self._resting and servable.revision not in self._pinned

    def _is_pinned(self, revision: str) -> bool:
        return revision in self._pinned

    def _holds_pinned(self, host: EngineHost) -> bool:
        return any(replica.revision in self._pinned for replica in host.replicas())


def _key(servable: Servable) -> str:
    """Adapters live in the engine of their base model, full weights in one of their own."""
    return f"full/{servable.revision}" if servable.kind is Kind.FULL else f"base/{servable.base_revision}"
