"""Owns `client.chat.completions`: answers to conversations, whole or streamed.
Must not know which sampling parameters exist: what the caller names goes to the server as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from tunesmith._blocking import BlockingResource, run_blocking
from tunesmith._http import AsyncResource, Call, HttpClient, path_of
from tunesmith._streaming import AsyncStream, Stream
from tunesmith.types import ChatCompletion, ChatCompletionChunk, ChatMessage

Messages = Sequence[Mapping[str, object] | ChatMessage]
"""Mappings with `role` and `content`; a message that a model answered with may stand among them."""


class AsyncChatCompletions(AsyncResource):
    """Answers to conversations."""

    @overload
    async def create(
        self, *, model: str, messages: Messages, stream: Literal[False] = False, **extra: Any
    ) -> ChatCompletion: ...

    @overload
    async def create(
        self, *, model: str, messages: Messages, stream: Literal[True], **extra: Any
    ) -> AsyncStream[ChatCompletionChunk]: ...

    @overload
    async def create(
        self, *, model: str, messages: Messages, stream: bool, **extra: Any
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]: ...

    async def create(
        self, *, model: str, messages: Messages, stream: bool = False, **extra: Any
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
        """Answer a conversation.

        Args:
            model: a base model, a tuned model (`ft:…`) or a checkpoint of one.
            messages: the conversation so far.
            stream: return chunks as they are generated.
            extra: `temperature`, `max_tokens`, `stop`, `seed`, `tools` and whatever else the server knows.

        Raises:
            NotFoundError: there is no such model in the key's project.
        """
        plain = [m.model_dump(exclude_none=True) if isinstance(m, ChatMessage) else m for m in messages]
        body = {**extra, "model": model, "messages": plain, "stream": stream}
        call = Call("POST", path_of("chat", "completions"), json=body, slow=True)
        if stream:
            return AsyncStream(await self._http.open_stream(call), ChatCompletionChunk)
        return await self._http.fetch(ChatCompletion, call)


class ChatCompletions(BlockingResource[AsyncChatCompletions]):
    """Answers to conversations."""

    @overload
    def create(
        self, *, model: str, messages: Messages, stream: Literal[False] = False, **extra: Any
    ) -> ChatCompletion: ...

    @overload
    def create(
        self, *, model: str, messages: Messages, stream: Literal[True], **extra: Any
    ) -> Stream[ChatCompletionChunk]: ...

    @overload
    def create(
        self, *, model: str, messages: Messages, stream: bool, **extra: Any
    ) -> ChatCompletion | Stream[ChatCompletionChunk]: ...

    def create(
        self, *, model: str, messages: Messages, stream: bool = False, **extra: Any
    ) -> ChatCompletion | Stream[ChatCompletionChunk]:
        """Answer a conversation; the arguments are those of `AsyncChatCompletions.create`."""
        answer = run_blocking(self.twin.create(model=model, messages=messages, stream=stream, **extra))
        return Stream(answer) if isinstance(answer, AsyncStream) else answer


class AsyncChat:
    """Conversations."""

    def __init__(self, http: HttpClient) -> None:
        self.completions = AsyncChatCompletions(http)


class Chat:
    """Conversations."""

    def __init__(self, twin: AsyncChat) -> None:
        self.completions = ChatCompletions(twin.completions)
