"""Owns `client.models`: the base models and tuned models that answer.
Must not know how models come about.
"""

from __future__ import annotations

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


class Models(BlockingResource[AsyncModels]):
    """Models that the project may use."""

    list = paging(AsyncModels.list)
    retrieve = blocking(AsyncModels.retrieve)
    delete = blocking(AsyncModels.delete)
