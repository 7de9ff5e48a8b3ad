"""Owns `client.models`: the base models and tuned models that answer, and the way of one from outside and back.
Must not know how models are trained.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from tunesmith._archives import pack, unpack
from tunesmith._blocking import BlockingResource, blocking
from tunesmith._downloads import download
from tunesmith._errors import ModelFailedError
from tunesmith._http import AsyncResource, Call, HttpClient, path_of
from tunesmith._pagination import PageRequest, paging
from tunesmith._patience import wait_until
from tunesmith.resources.files import AsyncFiles, Progress
from tunesmith.types import Deleted, ListAnswer, Model

_ARCHIVE_LIFETIME_S = 24 * 3600
"""The server keeps what an archive holds as a model; the archive itself only until nobody could ask for it again."""


class AsyncModels(AsyncResource):
    """Models that the project may use."""

    def __init__(self, http: HttpClient, files: AsyncFiles) -> None:
        super().__init__(http)
        self._files = files

    def list(self) -> PageRequest[Model]:
        """List base models and the project's tuned models."""
        return PageRequest(self._http, ListAnswer[Model], path_of("models"), {})

    async def retrieve(self, model: str) -> Model:
        """Return one model by its name."""
        return await self._http.fetch(Model, Call("GET", path_of("models", model)))

    async def delete(self, model: str) -> Deleted:
        """Delete a tuned model; it stops answering."""
        return await self._http.fetch(Deleted, Call("DELETE", path_of("models", model)))

    async def download(self, model: str, directory: str | os.PathLike[str], *, merged: bool = False) -> Sequence[Path]:
        """Write a tuned model's files into a directory, which is made, and return their paths.

        A connection that breaks is made again, also after a restart of the server, and brings what is missing.

        Args:
            model: the name of a tuned model or of a checkpoint of it.
            directory: where the files go; an empty one, or one that holds this model already, whole or in part.
            merged: the whole model, with an adapter's weights added to the base's; else an adapter comes as it is.

        Raises:
            FileExistsError: a file of another model is in the directory and would be loaded with this one.
            RateLimitError: the project downloads as many merged models as it may (`too_many_downloads`).
        """
        query = {"merged": "true"} if merged else None
        call = Call("GET", path_of("model_archives", model), query=query, slow=True)
        async with aclosing(download(self._http, call)) as archive:
            return await unpack(archive, Path(directory), self._http.transport.run)

    async def upload(
        self,
        directory: str | os.PathLike[str],
        *,
        base: str,
        suffix: str | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Bring a model that was tuned elsewhere; `wait` returns it once it answers under its name, `id`.

        Args:
            directory: PEFT's LoRA adapter, or a whole model in safetensors; files that are no part of it stay out.
            base: the base model that it was tuned from.
            suffix: a word of yours for the model's name.
            progress: called with the bytes that have arrived and the bytes of all.

        Raises:
            OSError: there is no model in the directory, or it cannot be read.
            BadRequestError: engines would not load it; `problems` lists everything.
        """
        folder = Path(directory)
        with tempfile.TemporaryFile() as archive:
            await self._http.transport.run(lambda: pack(folder, archive))
            file = await self._files.create(
                file=(f"{folder.name or 'model'}.tar", archive),
                purpose="model",
                expires_after=_ARCHIVE_LIFETIME_S,
                progress=progress,
            )
        body = {"base_model": base, "file": file.id} | ({"suffix": suffix} if suffix is not None else {})
        return await self._http.fetch(Model, Call("POST", path_of("models"), json=body))

    async def wait(
        self,
        model: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the synchronous twin, too, has to keep it
        poll_interval: float = 1.0,
    ) -> Model:
        """Return an uploaded model once it is ready. Waiting outlasts restarts of the server.

        Args:
            model: its name, from `upload`.
            timeout: seconds after which to give up; the import goes on.
            poll_interval: seconds between two looks.

        Raises:
            ModelFailedError: it cannot be served; `code` and `message` say why.
            WaitTimeoutError: it took longer than `timeout`.
        """
        found = await wait_until(
            self._http.transport,
            lambda: self.retrieve(model),
            lambda found: f"{model} was still being imported" if found.status == "importing" else None,
            timeout=timeout,
            poll_interval=poll_interval,
        )
        if found.status == "failed":
            raise ModelFailedError(found)
        return found


class Models(BlockingResource[AsyncModels]):
    """Models that the project may use."""

    list = paging(AsyncModels.list)
    retrieve = blocking(AsyncModels.retrieve)
    delete = blocking(AsyncModels.delete)
    download = blocking(AsyncModels.download)
    upload = blocking(AsyncModels.upload)
    wait = blocking(AsyncModels.wait)
