"""Owns the REST routes of captures: OpenAI's of stored chat completions, and ours that makes a dataset.

It must not know rules or SQL; the services decide.
"""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request

from tunesmith_server.captures.datasets import DatasetsService
from tunesmith_server.captures.repository import CaptureFilter
from tunesmith_server.captures.schemas import (
    ChatCompletionObject,
    ChatCompletionPage,
    CreateDataset,
    DatasetObject,
    DeletedChatCompletion,
    StoredMessage,
    StoredMessagePage,
    UpdateChatCompletion,
)
from tunesmith_server.captures.service import CapturesService, check_order
from tunesmith_server.captures.views import chat_completion, stored_messages
from tunesmith_server.files.views import file_object
from tunesmith_server.http_auth import CurrentPrincipal
from tunesmith_server.metadata import metadata_of
from tunesmith_server.paging import check_limit, unknown_cursor


def create_router(service: CapturesService) -> APIRouter:
    """What can be read and changed below /v1/chat/completions."""
    router = APIRouter(prefix="/v1/chat/completions", tags=["captures"])

    @router.get("")
    async def list_chat_completions(
        request: Request,
        principal: CurrentPrincipal,
        after: str | None = None,
        limit: int = 20,
        order: str = "asc",
        model: str = "",
    ) -> ChatCompletionPage:
        which = CaptureFilter(model, metadata_of(request.query_params))
        page = await service.list(principal, which, limit=limit, after=after, order=order)
        data = [chat_completion(each.row, each.content) for each in page.captures]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return ChatCompletionPage(data=data, first_id=first, last_id=last, has_more=page.has_more)

    @router.get("/{completion_id}")
    async def get_chat_completion(completion_id: str, principal: CurrentPrincipal) -> ChatCompletionObject:
        capture = await service.get(principal, completion_id)
        return chat_completion(capture.row, capture.content)

    @router.post("/{completion_id}")
    async def update_chat_completion(
        completion_id: str, body: UpdateChatCompletion, principal: CurrentPrincipal
    ) -> ChatCompletionObject:
        capture = await service.update(principal, completion_id, body.metadata or {})
        return chat_completion(capture.row, capture.content)

    @router.delete("/{completion_id}")
    async def delete_chat_completion(completion_id: str, principal: CurrentPrincipal) -> DeletedChatCompletion:
        await service.delete(principal, completion_id)
        return DeletedChatCompletion(id=completion_id)

    @router.get("/{completion_id}/messages")
    async def list_messages(
        completion_id: str,
        principal: CurrentPrincipal,
        after: str | None = None,
        limit: int = 20,
        order: str = "asc",
    ) -> StoredMessagePage:
        check_limit(limit)
        check_order(order)
        capture = await service.get(principal, completion_id)
        return _page_of(stored_messages(capture.row.id, capture.content), after, limit, order)

    return router


def create_datasets_router(service: DatasetsService) -> APIRouter:
    """/v1/capture_datasets."""
    router = APIRouter(prefix="/v1/capture_datasets", tags=["captures"])

    @router.post("")
    async def create_dataset(principal: CurrentPrincipal, body: CreateDataset | None = None) -> DatasetObject:
        file, counts = await service.create(principal, body or CreateDataset())
        return DatasetObject(**file_object(file).model_dump(), **asdict(counts))

    return router


def _page_of(messages: list[StoredMessage], after: str | None, limit: int, order: str) -> StoredMessagePage:
    ordered = messages if order == "asc" else messages[::-1]
    ids = [message.id for message in ordered]
    if after is not None and after not in ids:
        raise unknown_cursor(after)
    begin = 0 if after is None else ids.index(after) + 1
    data = ordered[begin : begin + limit]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return StoredMessagePage(data=data, first_id=first, last_id=last, has_more=begin + limit < len(ordered))
