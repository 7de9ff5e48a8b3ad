"""Owns one engine and what it serves: made fit for traffic at each start, out of rotation when it is gone.

It must not know other engines, requests or the engine's HTTP API.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith_inference import proof, tool_calls
from tunesmith_inference.completion_frame import CompletionFrame
from tunesmith_inference.config import Device, Settings
from tunesmith_inference.engine import EngineProcess, EngineSpec, takes_adapters
from tunesmith_inference.engine_memory import engine_bytes
from tunesmith_inference.replicas import Replica, ReplicaState
from tunesmith_inference.retries import Sleep, persistently
from tunesmith_inference.revisions import NotFetched, RevisionCache, RevisionRefused
from tunesmith_inference.router import Kind, Servable
from tunesmith_inference.served_set import ServedSet, Trouble, Unservable
from tunesmith_inference.vllm import EngineUnavailable, VllmClient

_log = logging.getLogger(__name__)

Command = Callable[[EngineSpec, Settings, Path], list[str]]

_BASE_POLL_SECONDS = 1.0
_RETRY_SECONDS = 0.2
_FAILURE_SECONDS = 60.0
_MAX_FAILED_STARTS = 3
_SET_SECONDS = 30.0
_CLEAN_ON_CPU = (0, 33)


class NotAskedFor(Exception):
    """There is no room for an engine that was to start ahead of demand: a request will start another one."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes: an engine, the engine's name for the model, and whether tools can be shown to it.

    `frame` is what prompts of /v1/completions stand in; None where the model continues them as they are.
    """

    client: VllmClient
    model: str
    takes_tools: bool
    frame: CompletionFrame | None


class EngineHost:
    """The engine of a base model and its adapters, or of one full-weight model. Starts at once; `stop` ends it.

    `on_up` is called each time the engine is fit for traffic; `is_pinned` says which adapters are to stay loaded,
    `deployed` gives models that an engine is to have before it gets traffic. `room_for` returns when there are so many
    bytes of memory for this one, or raises ValueError or NotAskedFor. `loaded` is told the name of each model that has
    come to answer, `sleep` passes the time between tries.
    """

    def __init__(
        self,
        servable: Servable,
        settings: Settings,
        revisions: RevisionCache,
        command: Command,
        on_up: Callable[[], None],
        is_pinned: Callable[[str], bool],
        deployed: Callable[[], Iterable[Servable]],
        room_for: Callable[[EngineHost, int], Awaitable[None]],
        loaded: Callable[[str], None],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.kind = Kind.FULL if servable.kind is Kind.FULL else Kind.BASE
        self.users = 0
        self.memory_bytes = 0
        self.last_used = time.monotonic()
        self.served: ServedSet | None = None
        self._servable = servable
        self.revision = servable.revision if self.kind is Kind.FULL else servable.base_revision
        self._name = f"{self.kind.value}-{self.revision[:16]}"
        self._settings = settings
        self._capacity = settings.max_loaded_adapters - 1
        self._revisions = revisions
        self._on_up = on_up
        self._is_pinned = is_pinned
        self._deployed = deployed
        self._room_for = room_for
        self._loaded = loaded
        self._sleep = sleep
        self._coming: ServedSet | None = None
        self._stage = ReplicaState.FETCHING
        self._reason = ""
        self._adapters = False
        self._takes_tools = False
        self._frame: CompletionFrame | None = None
        self._process = EngineProcess(settings, command)
        self._failure: tuple[float, Exception] | None = None
        self._trouble = Trouble()
        self._changed = asyncio.Event()
        self._running = asyncio.create_task(self._run())

    @contextlib.asynccontextmanager
    async def lease(self, servable: Servable) -> AsyncIterator[Target]:
        """Waits until the model answers and keeps it inside the block; raises Unservable or NotFetched."""
        self.users += 1
        try:
            async with contextlib.AsyncExitStack() as stack:
                target = None
                while target is None:
                    served = await self._up()
                    try:
                        model = await stack.enter_async_context(served.lease(servable))
                        frame = self._frame or served.frame_of(servable.revision)
                        target = Target(served.client, model, self._takes_tools, frame)
                    except EngineUnavailable:
                        await asyncio.sleep(_RETRY_SECONDS)
                yield target
        finally:
            self.users -= 1
            self.last_used = time.monotonic()

    @property
    def has_failed(self) -> bool:
        """Whether the engine failed for good."""
        return self._failure is not None

    @property
    def given_up(self) -> bool:
        """Whether the engine failed for good, long enough ago to deserve a new one."""
        return self._failure is not None and time.monotonic() - self._failure[0] > _FAILURE_SECONDS

    def is_ready(self, servable: Servable) -> bool:
        """Whether a request for the model would be answered at once."""
        return self.served is not None and (
            servable.kind is not Kind.ADAPTER or self.served.is_ready(servable.revision)
        )

    @property
    def idle_seconds(self) -> float:
        """How long nobody has asked for it."""
        return 0.0 if self.users else time.monotonic() - self.last_used

    async def reconcile(self, revisions: Set[str]) -> None:
        """Forgets adapters that the engine has lost and unloads idle ones of other revisions.

        Raises EngineUnavailable.
        """
        if self.served is not None:
            await self.served.reconcile()
        if self.served is not None:
            await self.served.keep_only(revisions)

    async def stop(self) -> None:
        """Ends the process."""
        self._running.cancel()
        await asyncio.wait({self._running})

    def state(self) -> dict[str, Any]:
        """For people who look; names revisions, not models."""
        own, *adapters = self.replicas()
        return {
            "kind": self.kind.value,
            "revision": self.revision[:16],
            "state": own.state.value if own.state in (ReplicaState.READY, ReplicaState.FAILED) else "starting",
            "reason": own.reason or (None if own.state is ReplicaState.READY else self._process.last_error),
            "starts": self._process.starts,
            "adapters": {replica.revision[:16]: _in_words(replica) for replica in adapters},
        }

    def replicas(self) -> list[Replica]:
        """What this engine holds: its own model first, then adapters."""
        if self._failure is not None:
            return [Replica(self.revision, self._name, ReplicaState.FAILED, str(self._failure[1]))]
        own = Replica(self.revision, self._name, self._stage, self._reason)
        if self.served is not None:
            own = Replica(self.revision, self._name, ReplicaState.READY, in_flight=self.users)
        served = self.served or self._coming
        adapters = served.replicas(self._name) if served is not None else []
        held = {replica.revision for replica in adapters}
        broken = [
            Replica(revision, self._name, ReplicaState.FAILED, reason)
            for revision, reason in self._trouble.broken.items()
            if revision not in held
        ]
        return [own, *adapters, *broken]

    async def _up(self) -> ServedSet:
        while self.served is None:
            if self._failure is not None:
                raise self._failure[1]
            self._changed.clear()
            await self._changed.wait()
        return self.served

    async def _run(self) -> None:
        try:
            folder = await self._folder()
            self._stage, self._reason = ReplicaState.LOADING, ""
            if self._settings.device is Device.CPU:
                await self._room_for(self, engine_bytes(folder, self._settings.kv_cache_gib))
            self._adapters = self.kind is Kind.BASE and takes_adapters(folder)
            self._takes_tools = tool_calls.parser_for(folder) is not None
            spec = EngineSpec(self._name, folder, adapters=self._adapters)
            limit = _MAX_FAILED_STARTS if self.kind is Kind.FULL else None
            await self._process.run(spec, self._is_up, self._is_gone, limit)
        except NotAskedFor:
            _log.info("engine %s waits for a request: there is no room ahead of demand", self._name)
        except NotFetched as error:
            self._fail(error)
        except (RevisionRefused, proof.ProofFailed, EngineUnavailable, ValueError) as error:
            self._fail(Unservable(str(error)))
        except Exception as error:  # whatever it is: those who wait are told, and a new engine is tried later
            _log.exception("engine %s failed in a way that was not foreseen", self._name)
            self._fail(Unservable(f"its engine failed: {type(error).__name__}"))

    def _fail(self, error: Exception) -> None:
        _log.error("engine %s is given up: %s", self._name, error)
        self._failure = (time.monotonic(), error)
        self.memory_bytes = 0
        self._changed.set()

    async def _folder(self) -> Path:
        if self.kind is Kind.FULL:
            fetch = partial(self._revisions.tuned_folder, self.revision, Kind.FULL)
            return await persistently(fetch, (NotFetched,), self._is_late, self._sleep)
        while True:
            try:
                return await self._revisions.base_folder(self.revision)
            except NotFetched as error:
                self._is_late(error)
            await self._sleep(_BASE_POLL_SECONDS)

    def _is_late(self, error: Exception) -> None:
        _log.warning("engine %s waits for its model: %s", self._name, error)
        self._reason = str(error)

    async def _is_up(self, client: VllmClient) -> None:
        """Makes a fresh engine fit for traffic: a zero adapter under the base model, a proof of full weights."""
        dtype = "float32" if self._settings.device is Device.CPU else "bfloat16"
        base_name = self._name
        if self.kind is Kind.FULL:
            self._stage = ReplicaState.PROBING
            golden = proof.read_golden(await self._revisions.tuned_folder(self.revision, Kind.FULL))
            await proof.prove(client.complete_greedily, golden, self._name, None, dtype)
            self._frame = golden.completion_frame
        elif self._adapters and self._settings.device is Device.CPU and _mixes_batches_up(await client.version()):
            base_name = "zero"
            await client.load_adapter(base_name, await self._revisions.zero_adapter_folder(self.revision))
        served = self._coming = ServedSet(
            client,
            base_name,
            base_is_adapter=base_name != self._name,
            at_once=self._settings.max_loras,
            fetch=lambda servable: self._revisions.tuned_folder(servable.revision, Kind.ADAPTER),
            capacity=self._capacity,
            dtype=dtype,
            is_pinned=self._is_pinned,
            recycle=self._recycle,
            trouble=self._trouble,
            loaded=self._loaded,
            sleep=self._sleep,
        )
        await self._have_back(served)
        if self._coming is served:
            self.served, self._coming = served, None
            self._changed.set()
            if self._servable.kind is not Kind.ADAPTER:
                self._loaded(self._servable.name)
            self._on_up()

    async def _have_back(self, served: ServedSet) -> None:
        """Tries to load what is deployed, once each and for a limited time: what fails does not keep the rest away."""
        mine = [
            model
            for model in self._deployed()
            if self._adapters and model.kind is Kind.ADAPTER and model.base_revision == self.revision
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SET_SECONDS):
                for model in mine[: self._capacity]:
                    await served.preload(model)

    def _recycle(self, reason: str) -> None:
        """Takes the engine out of rotation and has it replaced."""
        self._is_gone()
        self._process.recycle(reason)

    def _is_gone(self) -> None:
        self._stage = ReplicaState.LOADING
        for served in (self.served, self._coming):
            if served is not None:
                served.close()
        self.served = self._coming = None


def _in_words(replica: Replica) -> str:
    state = "not served" if replica.state is ReplicaState.FAILED else replica.state.value
    return f"{state}: {replica.reason}" if replica.reason else state


def _mixes_batches_up(version: str) -> bool:
    """CPU engines before 0.33 read slot -1, the last adapter, for rows that want none (vllm-project/vllm#48421)."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is None or (int(numbers[1]), int(numbers[2])) < _CLEAN_ON_CPU
