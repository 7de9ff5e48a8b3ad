"""Owns `client.models`: the base models and tuned models that answer.
Must not know how models come about.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tunesmith._archives import unpack
from tunesmith._blocking import BlockingResource, blocking
from tunesmith._http import AsyncResource, Call, path_of
from tunesmith._pagination import PageRequest, paging
from tunesmith.types import Deleted, ListAnswer, Model


class AsyncModels(AsyncResource):
    """Models that the project may use."""

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

        Args:
            model: the name of a tuned model or of a checkpoint of it.
            directory: where the files go; files of the same names are replaced.
            merged: the whole model, with an adapter's weights added to the base's; else an adapter comes as it is.
        """
        query = {"merged": "true"} if merged else None
        body = await self._http.open_stream(Call("GET", path_of("model_archives", model), query=query, slow=True))
        try:
            return await unpack(aiter(body), Path(directory), self._http.transport.run)
        finally:
            await body.close()


class Models(BlockingResource[AsyncModels]):
    """Models that the project may use."""

    list = paging(AsyncModels.list)
    retrieve = blocking(AsyncModels.retrieve)
    delete = blocking(AsyncModels.delete)
    download = blocking(AsyncModels.download)
