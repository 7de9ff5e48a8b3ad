"""Owns `client.captures`: chat completions that were kept, and datasets made of them.
Must not know how they are kept; keys opt in at the operator's.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith._blocking import BlockingResource, blocking
from tunesmith._http import AsyncResource, Call, path_of
from tunesmith._pagination import PageRequest, paging
from tunesmith.types import Capture, CaptureDataset, CapturedMessage, Deleted, ListAnswer

_PATH = ("chat", "completions")


class AsyncCaptures(AsyncResource):
    """What keys with `capture` asked and were answered."""

    def list(
        self,
        *,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        order: str = "asc",
        limit: int = 20,
        after: str | None = None,
    ) -> PageRequest[Capture]:
        """List captures, oldest first unless `order` is `desc`; `metadata` are pairs that must all match."""
        pairs = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        query = {"model": model, "order": order, "limit": limit, "after": after, **pairs}
        return PageRequest(self._http, ListAnswer[Capture], path_of(*_PATH), query)

    async def retrieve(self, capture_id: str) -> Capture:
        """Return one capture."""
        return await self._http.fetch(Capture, Call("GET", path_of(*_PATH, capture_id)))

    def messages(self, capture_id: str, *, limit: int = 20, after: str | None = None) -> PageRequest[CapturedMessage]:
        """List the messages of the request."""
        path = path_of(*_PATH, capture_id, "messages")
        return PageRequest(self._http, ListAnswer[CapturedMessage], path, {"limit": limit, "after": after})

    async def update(self, capture_id: str, *, metadata: Mapping[str, str]) -> Capture:
        """Give a capture metadata in the place of those it had."""
        call = Call("POST", path_of(*_PATH, capture_id), json={"metadata": dict(metadata)})
        return await self._http.fetch(Capture, call)

    async def delete(self, capture_id: str) -> Deleted:
        """Delete a capture and what was said in it."""
        return await self._http.fetch(Deleted, Call("DELETE", path_of(*_PATH, capture_id)))

    async def create_dataset(
        self,
        *,
        filename: str | None = None,
        model: str | None = None,
        since: int | None = None,
        until: int | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int | None = None,
        deduplicate: bool | None = None,
    ) -> CaptureDataset:
        """Make a file to fine-tune with; its id is a `training_file`.

        Args:
            filename: what the file is called.
            model: only captures of requests for this model.
            since: only captures from this time on, in Unix seconds.
            until: only captures before this time.
            metadata: pairs that must all match.
            limit: the newest so many, 10,000 by default.
            deduplicate: of equal prompts only the newest answer, which is the default.

        Raises:
            BadRequestError: no whole answer was captured that matches (`no_captures`).
        """
        sent = {
            "filename": filename,
            "model": model,
            "since": since,
            "until": until,
            "metadata": None if metadata is None else dict(metadata),
            "limit": limit,
            "deduplicate": deduplicate,
        }
        body = {name: value for name, value in sent.items() if value is not None}
        return await self._http.fetch(CaptureDataset, Call("POST", path_of("capture_datasets"), json=body, slow=True))


class Captures(BlockingResource[AsyncCaptures]):
    """What keys with `capture` asked and were answered."""

    list = paging(AsyncCaptures.list)
    retrieve = blocking(AsyncCaptures.retrieve)
    messages = paging(AsyncCaptures.messages)
    update = blocking(AsyncCaptures.update)
    delete = blocking(AsyncCaptures.delete)
    create_dataset = blocking(AsyncCaptures.create_dataset)
