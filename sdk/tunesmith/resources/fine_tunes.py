"""Owns `client.fine_tunes`: create, follow and wait for fine-tune jobs.
Must not know how files are stored or how a list is paged.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from tunesmith._blocking import BlockingResource, blocking, iterating
from tunesmith._errors import (
    APIConnectionError,
    FineTuneFailedError,
    InternalServerError,
    RateLimitError,
    WaitTimeoutError,
)
from tunesmith._http import AsyncResource, Call, HttpClient, path_of
from tunesmith._pagination import AsyncPage, PageRequest, paging
from tunesmith.resources.files import AsyncFiles
from tunesmith.types import FineTune, FineTuneCheckpoint, FineTuneEvent, ListAnswer

ResultT = TypeVar("ResultT")

Auto = Literal["auto"]

OUTAGE_PATIENCE_S = 300.0
"""How long following and waiting outlast a server that is away: long enough for a restart or an upgrade."""

_FILE_ID = re.compile(r"file-[A-Za-z0-9]+")
_EVENTS_PER_PAGE = 100
_OUTAGE_POLL_S = 1.0


@dataclass(frozen=True)
class FineTuneUpdate:
    """A job as it is now, with the events that came since the last update, oldest first."""

    fine_tune: FineTune
    events: Sequence[FineTuneEvent]


class AsyncFineTunes(AsyncResource):
    """Fine-tune jobs of the project."""

    def __init__(self, http: HttpClient, files: AsyncFiles) -> None:
        super().__init__(http)
        self._files = files

    async def create(
        self,
        *,
        model: str,
        training_file: str | os.PathLike[str],
        validation_file: str | os.PathLike[str] | None = None,
        suffix: str | None = None,
        seed: int | None = None,
        n_epochs: int | Auto | None = None,
        batch_size: int | Auto | None = None,
        learning_rate_multiplier: float | Auto | None = None,
        method: str | Mapping[str, object] = "supervised",
        weights: Literal["lora", "full"] | None = None,
        lora_rank: int | Auto | None = None,
        lora_alpha: float | Auto | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> FineTune:
        """Start a fine-tune; what is left out is chosen by the server and shown in the job.

        Args:
            model: the base model.
            training_file: a file id, or a local path, which is uploaded unless its bytes are stored already.
            validation_file: likewise; without it the server carves rows out of the training file.
            suffix: a word of yours for the model's name.
            seed: makes the run repeatable.
            n_epochs: passes over the data, 1 to 50.
            batch_size: rows per optimizer step, 1 to 256.
            learning_rate_multiplier: factor on the server's own learning rate.
            method: its name, or OpenAI's whole `method` object, which then holds the hyperparameters.
            weights: `lora` trains an adapter, `full` every weight.
            lora_rank: size of the adapter.
            lora_alpha: strength of the adapter.
            metadata: up to 16 pairs to find the job by.

        Raises:
            OSError: a file is neither an id nor a local path that can be read.
            BadRequestError: `param` names what is wrong.
        """
        numbers = _given(n_epochs=n_epochs, batch_size=batch_size, learning_rate_multiplier=learning_rate_multiplier)
        body = _given(
            model=model,
            training_file=await self._file_id(training_file),
            validation_file=None if validation_file is None else await self._file_id(validation_file),
            suffix=suffix,
            seed=seed,
            method=_method_object(method, numbers),
            training=_given(weights=weights, lora_rank=lora_rank, lora_alpha=lora_alpha) or None,
            metadata=metadata,
        )
        return await self._http.fetch(FineTune, Call("POST", _jobs_path(), json=body))

    async def retrieve(self, fine_tune_id: str) -> FineTune:
        """Return the job as it is now."""
        return await self._http.fetch(FineTune, Call("GET", _jobs_path(fine_tune_id)))

    def list(
        self, *, after: str | None = None, limit: int | None = None, metadata: Mapping[str, str] | None = None
    ) -> PageRequest[FineTune]:
        """List jobs, newest first; those with all these pairs, if `metadata` is given."""
        pairs = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        return PageRequest(self._http, ListAnswer[FineTune], _jobs_path(), {"after": after, "limit": limit, **pairs})

    async def cancel(self, fine_tune_id: str) -> FineTune:
        """Stop a job; checkpoints that exist stay usable."""
        return await self._http.fetch(FineTune, Call("POST", _jobs_path(fine_tune_id, "cancel")))

    def checkpoints(
        self, fine_tune_id: str, *, after: str | None = None, limit: int | None = None
    ) -> PageRequest[FineTuneCheckpoint]:
        """List the usable states of the model during training, newest first."""
        path = _jobs_path(fine_tune_id, "checkpoints")
        return PageRequest(self._http, ListAnswer[FineTuneCheckpoint], path, {"after": after, "limit": limit})

    async def events(
        self, fine_tune_id: str, *, follow: bool = False, poll_interval: float = 1.0
    ) -> AsyncIterator[FineTuneEvent]:
        """Yield what has happened so far, oldest first; with `follow`, go on until the job has finished.

        Each event comes once. Following outlasts restarts of the server.

        Args:
            fine_tune_id: the job.
            follow: wait for further events.
            poll_interval: seconds between two looks.
        """
        if not follow:
            for event in await self._unseen_events(fine_tune_id, set()):
                yield event
            return
        async for update in self.follow(fine_tune_id, poll_interval=poll_interval):
            for event in update.events:
                yield event

    async def follow(self, fine_tune_id: str, *, poll_interval: float = 1.0) -> AsyncIterator[FineTuneUpdate]:
        """Yield the job with its new events, at once and after every look, until it has finished.

        Each event comes once. Following outlasts restarts of the server.

        Args:
            fine_tune_id: the job.
            poll_interval: seconds between two looks.
        """
        seen: set[str] = set()
        job = await self.retrieve(fine_tune_id)
        while True:
            # The job is read before its events: once it has finished, the events read afterwards are all there are.
            fresh = await self._outlast(lambda: self._unseen_events(fine_tune_id, seen))
            seen.update(event.id for event in fresh)
            yield FineTuneUpdate(job, fresh)
            if job.finished:
                return
            await self._http.transport.sleep(poll_interval)
            job = await self._outlast(lambda: self.retrieve(fine_tune_id))

    async def wait(
        self,
        fine_tune_id: str,
        *,
        on_progress: Callable[[FineTune], object] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the synchronous twin, too, has to keep it
        raise_on_failure: bool = True,
        poll_interval: float = 1.0,
    ) -> FineTune:
        """Return the job once it has finished. Waiting outlasts restarts of the server.

        Args:
            fine_tune_id: the job.
            on_progress: called with the job whenever its status or progress has changed.
            timeout: seconds after which to give up; the job goes on.
            raise_on_failure: False returns a failed job like any other.
            poll_interval: seconds between two looks.

        Raises:
            FineTuneFailedError: the job failed; its `code` and `message` are the job's.
            WaitTimeoutError: it took longer than `timeout`.
        """
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        shown: object = None
        job = await self.retrieve(fine_tune_id)
        while True:
            if on_progress is not None and shown != (job.status, job.progress):
                shown = (job.status, job.progress)
                on_progress(job)
            if job.finished:
                break
            if time.monotonic() >= deadline:
                raise WaitTimeoutError(f"Fine-tune {fine_tune_id} was still {job.status} after {timeout:g} seconds.")
            await self._http.transport.sleep(min(poll_interval, max(0.0, deadline - time.monotonic())))
            job = await self._outlast(lambda: self.retrieve(fine_tune_id), deadline)
        if job.status == "failed" and raise_on_failure:
            raise FineTuneFailedError(job)
        return job

    async def _file_id(self, file: str | os.PathLike[str]) -> str:
        if isinstance(file, str) and _FILE_ID.fullmatch(file):
            return file
        return (await self._files.create_once(file=_existing(file), purpose="fine-tune")).id

    async def _unseen_events(self, fine_tune_id: str, seen: set[str]) -> Sequence[FineTuneEvent]:
        """Return the events with other ids than these, oldest first; the server lists newest first."""
        path = _jobs_path(fine_tune_id, "events")
        newest = PageRequest(self._http, ListAnswer[FineTuneEvent], path, {"limit": _EVENTS_PER_PAGE})
        fresh: deque[FineTuneEvent] = deque()
        page: AsyncPage[FineTuneEvent] | None = await newest
        while page is not None:
            unseen = [event for event in page.data if event.id not in seen]
            fresh.extendleft(unseen)
            page = await page.next_page() if len(unseen) == len(page.data) else None
        return fresh

    async def _outlast(self, ask: Callable[[], Awaitable[ResultT]], deadline: float = float("inf")) -> ResultT:
        """Ask again and again while the server is away, up to `OUTAGE_PATIENCE_S` or the deadline (monotonic)."""
        give_up = min(deadline, time.monotonic() + OUTAGE_PATIENCE_S)
        while True:
            try:
                return await ask()
            except (APIConnectionError, InternalServerError, RateLimitError):
                if time.monotonic() >= give_up:
                    raise
                await self._http.transport.sleep(_OUTAGE_POLL_S)


class FineTunes(BlockingResource[AsyncFineTunes]):
    """Fine-tune jobs of the project."""

    create = blocking(AsyncFineTunes.create)
    retrieve = blocking(AsyncFineTunes.retrieve)
    list = paging(AsyncFineTunes.list)
    cancel = blocking(AsyncFineTunes.cancel)
    checkpoints = paging(AsyncFineTunes.checkpoints)
    events = iterating(AsyncFineTunes.events)
    follow = iterating(AsyncFineTunes.follow)
    wait = blocking(AsyncFineTunes.wait)


def _jobs_path(*parts: str) -> str:
    return path_of("fine_tuning", "jobs", *parts)


def _existing(file: str | os.PathLike[str]) -> Path:
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "Neither the id of an uploaded file nor a local file", str(path))
    return path


def _given(**values: object) -> dict[str, object]:
    """Return what is not None: the server chooses the rest."""
    return {name: value for name, value in values.items() if value is not None}


def _method_object(method: str | Mapping[str, object], hyperparameters: Mapping[str, object]) -> Mapping[str, object]:
    if isinstance(method, str):
        return {"type": method, method: {"hyperparameters": hyperparameters}}
    if hyperparameters:
        raise ValueError(f"Put {', '.join(hyperparameters)} into the hyperparameters of the method object.")
    return method
