"""Owns `client.fine_tunes`: create, follow and wait for fine-tune jobs.
Must not know how files are stored or how a list is paged.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from tunesmith._blocking import BlockingResource, blocking, iterating
from tunesmith._errors import APIConnectionError, FineTuneFailedError, InternalServerError
from tunesmith._http import AsyncResource, Call, HttpClient, ResponseBody, path_of
from tunesmith._pagination import AsyncPage, PageRequest, paging
from tunesmith._patience import OUTAGE_POLL_S, outlast, wait_until
from tunesmith._streaming import AsyncStream
from tunesmith.resources.files import AsyncFiles
from tunesmith.resources.fine_tune_request import FileReference, FineTuneRequest, fine_tune_body
from tunesmith.types import Estimate, File, FineTune, FineTuneCheckpoint, FineTuneEvent, ListAnswer

_FILE_ID = re.compile(r"file-[A-Za-z0-9]+")
_EVENTS_PER_PAGE = 100


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

    async def create(self, **asked: Unpack[FineTuneRequest]) -> FineTune:
        """Start a fine-tune; what is left out is chosen by the server and shown in the job.

        Args:
            asked: `model` and `training_file`, and what else `FineTuneRequest` names.

        Raises:
            OSError: a file is neither an id nor a local path that can be read.
            TypeError: a file is neither, nor a `File`.
            BadRequestError: `param` names what is wrong.
        """
        return await self._http.fetch(FineTune, Call("POST", _jobs_path(), json=await self._body(asked)))

    async def estimate(self, *, wait_seconds: float = 25.0, **asked: Unpack[FineTuneRequest]) -> Estimate:
        """Return what a fine-tune would take: tokens, steps, memory, time, place in the queue; nothing is started.

        Args:
            wait_seconds: how long the server may validate, up to 60; an estimate that takes longer has the status
                `validating_files`, and `wait_for_estimate` returns it once it is there.
            asked: as for `create`.

        Raises:
            OSError: a file is neither an id nor a local path that can be read.
            TypeError: a file is neither, nor a `File`.
            BadRequestError: `param` names what is wrong.
        """
        path = path_of("fine_tuning", "estimates")
        query = {"wait_seconds": f"{wait_seconds:g}"}
        call = Call("POST", path, query=query, json=await self._body(asked), slow=True)
        return await self._http.fetch(Estimate, call)

    async def retrieve_estimate(self, estimate_id: str) -> Estimate:
        """Return an estimate as it is now; it is kept for a day."""
        return await self._http.fetch(Estimate, Call("GET", path_of("fine_tuning", "estimates", estimate_id)))

    async def wait_for_estimate(
        self,
        estimate_id: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the synchronous twin, too, has to keep it
        poll_interval: float = 1.0,
    ) -> Estimate:
        """Return an estimate once it is `ready` or `failed`. Waiting outlasts restarts of the server.

        Args:
            estimate_id: the estimate, from `estimate`.
            timeout: seconds after which to give up; the validation goes on.
            poll_interval: seconds between two looks.

        Raises:
            WaitTimeoutError: it took longer than `timeout`.
        """
        return await wait_until(
            self._http.transport,
            lambda: self.retrieve_estimate(estimate_id),
            lambda found: f"{estimate_id} was still {found.status}" if found.status == "validating_files" else None,
            timeout=timeout,
            poll_interval=poll_interval,
        )

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

    async def pause(self, fine_tune_id: str) -> FineTune:
        """Have a job save its work and wait; its checkpoints stay usable."""
        return await self._http.fetch(FineTune, Call("POST", _jobs_path(fine_tune_id, "pause")))

    async def resume(self, fine_tune_id: str) -> FineTune:
        """Let a paused job go on, or one that was made with `auto_start=False` begin."""
        return await self._http.fetch(FineTune, Call("POST", _jobs_path(fine_tune_id, "resume")))

    async def logs(self, fine_tune_id: str, *, attempt: int | None = None, tail_bytes: int | None = None) -> str:
        """Return the end of what a run has written.

        Args:
            fine_tune_id: the job.
            attempt: 1 for the first run, which validates the files; by default the newest.
            tail_bytes: how much of the end.
        """
        query = {"attempt": attempt, "tail_bytes": tail_bytes}
        content = await self._http.fetch_bytes(Call("GET", _jobs_path(fine_tune_id, "logs"), query=query))
        return content.decode("utf-8", errors="replace")

    async def report(self, fine_tune_id: str) -> str:
        """Return the job as one HTML page that loads nothing: losses, scores, flipped rows, settings with reasons."""
        content = await self._http.fetch_bytes(Call("GET", _jobs_path(fine_tune_id, "report")))
        return content.decode("utf-8")

    def checkpoints(
        self, fine_tune_id: str, *, after: str | None = None, limit: int | None = None
    ) -> PageRequest[FineTuneCheckpoint]:
        """List the usable states of the model during training, newest first."""
        path = _jobs_path(fine_tune_id, "checkpoints")
        return PageRequest(self._http, ListAnswer[FineTuneCheckpoint], path, {"after": after, "limit": limit})

    async def events(self, fine_tune_id: str, *, follow: bool = False) -> AsyncIterator[FineTuneEvent]:
        """Yield what has happened so far, oldest first; with `follow`, go on until the job has ended.

        Each event comes once, as it happens. Following outlasts restarts of the server.

        Args:
            fine_tune_id: the job.
            follow: wait for further events.
        """
        if not follow:
            for event in await self._unseen_events(fine_tune_id, set()):
                yield event
            return
        last: str | None = None
        body = await self._open_events(fine_tune_id, last)
        while True:
            try:
                async with AsyncStream(body, FineTuneEvent) as stream:
                    async for event in stream:
                        last = event.id
                        yield event
            except (APIConnectionError, InternalServerError):
                # Cut off, as by a restart: the stream goes on after the last event that came.
                await self._http.transport.sleep(OUTAGE_POLL_S)
            else:
                return
            body = await outlast(self._http.transport, functools.partial(self._open_events, fine_tune_id, last))

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
            fresh = await outlast(self._http.transport, lambda: self._unseen_events(fine_tune_id, seen))
            seen.update(event.id for event in fresh)
            yield FineTuneUpdate(job, fresh)
            if job.finished:
                return
            await self._http.transport.sleep(poll_interval)
            job = await outlast(self._http.transport, lambda: self.retrieve(fine_tune_id))

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
        shown: object = None

        def still(found: FineTune) -> str | None:
            nonlocal shown
            if on_progress is not None and shown != (found.status, found.progress):
                shown = (found.status, found.progress)
                on_progress(found)
            return None if found.finished else f"Fine-tune {fine_tune_id} was still {found.status}"

        look = functools.partial(self.retrieve, fine_tune_id)
        job = await wait_until(self._http.transport, look, still, timeout=timeout, poll_interval=poll_interval)
        if job.status == "failed" and raise_on_failure:
            raise FineTuneFailedError(job)
        return job

    async def _body(self, asked: FineTuneRequest) -> Mapping[str, object]:
        body = fine_tune_body(asked)
        body["training_file"] = await self._file_id("training_file", asked["training_file"])
        validation_file = asked.get("validation_file")
        if validation_file is not None:
            body["validation_file"] = await self._file_id("validation_file", validation_file)
        return body

    async def _open_events(self, fine_tune_id: str, after: str | None) -> ResponseBody:
        query = {"stream": "true", "after": after}
        return await self._http.open_stream(Call("GET", _jobs_path(fine_tune_id, "events"), query=query))

    async def _file_id(self, name: str, file: FileReference) -> str:
        if isinstance(file, File):
            return file.id
        if not isinstance(file, str | os.PathLike):
            kind = type(file).__name__
            raise TypeError(
                f"{name} is a path, a file's id or a File, not {kind}: upload it by client.files.create first."
            )
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


class FineTunes(BlockingResource[AsyncFineTunes]):
    """Fine-tune jobs of the project."""

    create = blocking(AsyncFineTunes.create)
    retrieve = blocking(AsyncFineTunes.retrieve)
    list = paging(AsyncFineTunes.list)
    cancel = blocking(AsyncFineTunes.cancel)
    pause = blocking(AsyncFineTunes.pause)
    resume = blocking(AsyncFineTunes.resume)
    estimate = blocking(AsyncFineTunes.estimate)
    retrieve_estimate = blocking(AsyncFineTunes.retrieve_estimate)
    wait_for_estimate = blocking(AsyncFineTunes.wait_for_estimate)
    logs = blocking(AsyncFineTunes.logs)
    report = blocking(AsyncFineTunes.report)
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
