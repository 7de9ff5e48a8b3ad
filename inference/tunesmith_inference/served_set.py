"""Owns which adapters are loaded in one engine, from its start to its end, and that only proven ones get traffic.

It must not know processes, projects or requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tunesmith_inference import proof
from tunesmith_inference.completion_frame import CompletionFrame
from tunesmith_inference.replicas import Replica, ReplicaState
from tunesmith_inference.retries import Sleep, persistently
from tunesmith_inference.revisions import NotFetched, RevisionRefused
from tunesmith_inference.router import Kind, Servable
from tunesmith_inference.turns import Turns
from tunesmith_inference.vllm import AdapterRefused, Completion, EngineUnavailable, VllmClient

_log = logging.getLogger(__name__)

_MAX_NEIGHBOURS = 3
_MAX_RECYCLED = 2


class Unservable(Exception):
    """This revision must not get traffic from this engine; the text says why."""


@dataclass(slots=True)
class _Slot:
    """One adapter: the task that loads and proves it, how far that is, and how many requests use it."""

    name: str
    loading: asyncio.Task[None]
    stage: ReplicaState = ReplicaState.FETCHING
    reason: str = ""
    """Why the last try failed, while there are more to come."""
    tried: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the first try has come to an end."""
    draining: bool = False
    users: int = 0
    proven: proof.Neighbour | None = None
    """What it is held against when others come beside it, once it is proven."""
    frame: CompletionFrame | None = None
    """What its prompts of /v1/completions stand in."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What outlives an engine that had to be replaced because it answered wrongly for proven adapters.

    `broken` are those, with why, until they are proven again; `suspects` counts during whose proof it was found.
    """

    broken: dict[str, str] = field(default_factory=dict)
    suspects: Counter[str] = field(default_factory=Counter)


class ServedSet:
    """What one running engine serves.

    `base_name` is what requests to the engine's own model go by: a zero adapter's name, with `base_is_adapter`, where
    the engine would otherwise give base answers the delta of another request's adapter. `capacity` is the number of
    adapters kept, `at_once` of those that are asked for at once, `fetch` gives an adapter's folder, `dtype` is what the
    engine computes in, `is_pinned` whether a revision is to stay loaded.
    `recycle` has the engine replaced, with why; `trouble` is what its predecessors had. `loaded` is told the name of
    each model that has come to answer, `sleep` passes the time between tries.
    """

    def __init__(
        self,
        client: VllmClient,
        base_name: str,
        *,
        base_is_adapter: bool,
        at_once: int,
        fetch: Callable[[Servable], Awaitable[Path]],
        capacity: int,
        dtype: str,
        is_pinned: Callable[[str], bool],
        recycle: Callable[[str], None],
        trouble: Trouble,
        loaded: Callable[[str], None],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.client = client
        self._base_name = base_name
        self._base_is_adapter = base_is_adapter
        self._turns = Turns(at_once)
        self._fetch = fetch
        self._capacity = capacity
        self._dtype = dtype
        self._is_pinned = is_pinned
        self._recycle = recycle
        self._trouble = trouble
        self._loaded = loaded
        self._sleep = sleep
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._released = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lease(self, servable: Servable) -> AsyncIterator[str]:
        """The engine's name for a model, which stays loaded inside the block.

        Raises Unservable, NotFetched, or EngineUnavailable.
        """
        if servable.kind is not Kind.ADAPTER:
            async with self._turn(self._base_name):
                yield self._base_name
            return
        slot = self._slot(servable)
        slot.users += 1
        try:
            # Not awaited itself: the load goes on for others when this request is given up.
            if not slot.loading.done():
                await asyncio.wait({slot.loading})
            if slot.loading.cancelled():
                raise EngineUnavailable("the engine went away while the adapter was loading")
            slot.loading.result()
            async with self._turn(slot.name):
                yield slot.name
        finally:
            slot.users -= 1
            self._released.set()

    def frame_of(self, revision: str) -> CompletionFrame | None:
        """What prompts of /v1/completions stand in for a loaded adapter; None for any other revision."""
        slot = self._slots.get(revision)
        return slot.frame if slot is not None else None

    async def preload(self, servable: Servable) -> None:
        """Begins to load an adapter that nobody has asked for yet; returns when the first try has come to an end."""
        await self._slot(servable).tried.wait()

    def ask_anew(self, revision: str) -> None:
        """Forgets that an adapter has failed, so that it is tried anew."""
        slot = self._slots.get(revision)
        if slot is not None and slot.loading.done() and not slot.draining and not _succeeded(slot.loading):
            del self._slots[revision]

    def knows(self, revision: str) -> bool:
        """Whether the adapter is loaded, being loaded or refused."""
        return revision in self._slots

    def is_ready(self, revision: str) -> bool:
        """Whether the adapter is loaded and proven."""
        slot = self._slots.get(revision)
        return slot is not None and _succeeded(slot.loading)

    def replicas(self, engine: str) -> list[Replica]:
        """What is held of adapters, and how far it is, under the name `engine` for this engine."""
        return [_replica(revision, engine, slot) for revision, slot in self._slots.items()]

    async def reconcile(self) -> None:
        """Forgets adapters that the engine has lost: who asks next has them loaded and proven again.

        Raises EngineUnavailable.
        """
        loaded = [(revision, slot) for revision, slot in self._slots.items() if _succeeded(slot.loading)]
        held = await self.client.models()
        for revision, slot in loaded:
            if slot.name not in held and self._slots.get(revision) is slot:
                _log.warning("the engine has lost revision %s", revision[:16])
                del self._slots[revision]

    async def keep_only(self, revisions: Set[str]) -> None:
        """Unloads adapters that no name points at any more, once their last request has ended: they drain till then."""
        for revision in self._trouble.broken.keys() - revisions:
            del self._trouble.broken[revision]
        for revision, slot in list(self._slots.items()):
            slot.draining = revision not in revisions
            if not slot.draining or slot.users or not slot.loading.done():
                continue
            del self._slots[revision]
            if _succeeded(slot.loading):
                await self.client.unload_adapter(slot.name)
                _log.info("revision %s is not served any more", revision[:16])

    def close(self) -> None:
        """Ends all loading: the engine is gone."""
        for slot in self._slots.values():
            slot.loading.cancel()

    def _slot(self, servable: Servable) -> _Slot:
        """The adapter's slot, new where there is none or where it may work now; one load at a time each."""
        slot = self._slots.get(servable.revision)
        if slot is None or _may_try_again(slot.loading):
            name = f"r-{servable.revision[:16]}"
            slot = _Slot(name, asyncio.create_task(self._load(servable, name)))
            slot.loading.add_done_callback(partial(_ended, slot.tried))
            self._slots[servable.revision] = slot
        self._slots.move_to_end(servable.revision)
        return slot

    async def _load(self, servable: Servable, name: str) -> None:
        """Loads and proves an adapter, again and again for a while where that may work later.

        Raises Unservable, or what the last try did: NotFetched or EngineUnavailable.
        """
        if self._trouble.suspects[servable.revision] >= _MAX_RECYCLED:
            raise Unservable("other models of its engine stop answering as they should when it is loaded")
        slot = self._slots[servable.revision]

        def failed(error: Exception) -> None:
            _log.warning("revision %s is tried again: %s", servable.revision[:16], error)
            slot.reason = str(error)
            slot.tried.set()

        try:
            await persistently(
                partial(self._try_to_load, servable, slot), (NotFetched, EngineUnavailable), failed, self._sleep
            )
        except (RevisionRefused, AdapterRefused, proof.ProofFailed) as error:
            _log.error("revision %s is not served: %s", servable.revision[:16], error)
            await self.client.unload_adapter(name)
            raise Unservable(str(error)) from error
        self._trouble.broken.pop(servable.revision, None)
        self._loaded(servable.name)
        _log.info("revision %s is proven and served", servable.revision[:16])

    async def _try_to_load(self, servable: Servable, slot: _Slot) -> None:
        slot.stage = ReplicaState.FETCHING
        folder = await self._fetch(servable)
        slot.stage = ReplicaState.LOADING
        await self._make_room(servable.revision)
        golden = proof.read_golden(folder)
        slot.frame = golden.completion_frame
        await self.client.load_adapter(slot.name, folder)
        slot.stage = ReplicaState.PROBING
        await self._prove(servable.revision, golden)

    async def _prove(self, revision: str, golden: proof.Golden) -> None:
        """Holds a loaded adapter against its record, beside the base model and a few adapters used last.

        Raises ProofFailed, or EngineUnavailable where it is the engine that no longer answers as it did.
        """
        # They stay loaded meanwhile.
        others = [(name, other) for name, other in reversed(self._slots.items()) if other.proven][:_MAX_NEIGHBOURS]
        for _, other in others:
            other.users += 1
        beside = {name: other.proven for name, other in others if other.proven}
        slot, neighbours = self._slots[revision], list(beside.values())
        try:
            slot.proven = await proof.prove(self._complete, golden, slot.name, self._base_name, self._dtype, neighbours)
        except proof.ProofFailed:
            await self._check_alone(revision, beside)
            raise
        finally:
            for _, other in others:
                other.users -= 1
            self._released.set()

    async def _check_alone(self, newcomer: str, beside: Mapping[str, proof.Neighbour]) -> None:
        """Has the engine replaced, and raises EngineUnavailable, if a revision `beside` fails by itself, too."""
        for revision, neighbour in beside.items():
            try:
                await proof.check(self._complete, neighbour)
            except proof.ProofFailed as error:
                reason = f"it answered as recorded before and does not any more: {error}"
                self._trouble.suspects[newcomer] += 1
                self._trouble.broken[revision] = reason
                self.close()
                self._recycle(reason)
                raise EngineUnavailable("the engine is replaced: it answers wrongly for a proven adapter") from error

    async def _complete(self, model: str, prompt: Sequence[int], tokens: int) -> Completion:
        """A greedy answer in its turn: beside as many busy adapters as there are places it would never be made."""
        async with self._turn(model):
            return await self.client.complete_greedily(model, prompt, tokens)

    def _turn(self, model: str) -> contextlib.AbstractAsyncContextManager[None]:
        if model == self._base_name and not self._base_is_adapter:
            return contextlib.nullcontext()
        return self._turns.turn(model)

    async def _make_room(self, revision: str) -> None:
        """Unloads the least recently used idle adapters, waiting for one to become idle if it must.

        Pinned ones only where all are.
        """
        while (
            len(loaded := [r for r, slot in self._slots.items() if r != revision and _succeeded(slot.loading)])
            >= self._capacity
        ):
            free = [r for r in loaded if not self._is_pinned(r)] or loaded
            victim = next((r for r in free if self._slots[r].users == 0), None)
            if victim is None:
                self._released.clear()
                await self._released.wait()
                continue
            slot = self._slots.pop(victim)
            await self.client.unload_adapter(slot.name)


def _ended(tried: asyncio.Event, loading: asyncio.Task[None]) -> None:
    tried.set()
    if not loading.cancelled():
        # A failure is kept for those who ask later; nobody may be waiting when it happens.
        loading.exception()


def _succeeded(loading: asyncio.Task[None]) -> bool:
    return loading.done() and not loading.cancelled() and loading.exception() is None


def _may_try_again(loading: asyncio.Task[None]) -> bool:
    if not loading.done():
        return False
    return loading.cancelled() or isinstance(loading.exception(), (NotFetched, EngineUnavailable))


def _replica(revision: str, engine: str, slot: _Slot) -> Replica:
    if not slot.loading.done():
        return Replica(revision, engine, slot.stage, slot.reason)
    error = EngineUnavailable("the engine is gone") if slot.loading.cancelled() else slot.loading.exception()
    if error is None:
        state = ReplicaState.DRAINING if slot.draining else ReplicaState.READY
        return Replica(revision, engine, state, in_flight=slot.users)
    return Replica(revision, engine, ReplicaState.FAILED, str(error))
