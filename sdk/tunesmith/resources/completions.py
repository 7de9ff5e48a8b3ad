"""Owns `client.completions`: continuations of a prompt, whole or streamed.
Must not know which sampling parameters exist: what the caller names goes to the server as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

from tunesmith._blocking import BlockingResource, run_blocking
from tunesmith._http import AsyncResource, Call, path_of
from tunesmith._streaming import AsyncStream, Stream
from tunesmith.types import Completion

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""Text or token ids, one or many."""


class AsyncCompletions(AsyncResource):
    """Continuations of a prompt."""

    @overload
    async def create(
        self, *, model: str, prompt: Prompt, stream: Literal[False] = False, **extra: Any
    ) -> Completion: ...

    @overload
    async def create(
        self, *, model: str, prompt: Prompt, stream: Literal[True], **extra: Any
    ) -> AsyncStream[Completion]: ...

    @overload
    async def create(
        self, *, model: str, prompt: Prompt, stream: bool, **extra: Any
    ) -> Completion | AsyncStream[Completion]: ...

    async def create(
        self, *, model: str, prompt: Prompt, stream: bool = False, **extra: Any
    ) -> Completion | AsyncStream[Completion]:
        """Continue a prompt.

        Args:
            model: a base model, a tuned model (`ft:…`) or a checkpoint of one.
            prompt: text or token ids, one or many.
            stream: return pieces as they are generated.
            extra: `temperature`, `max_tokens`, `stop`, `seed`, `logprobs` and whatever else the server knows.

        Raises:
            NotFoundError: there is no such model in the key's project.
        """
        body = {**extra, "model": model, "prompt": prompt, "stream": stream}
        call = Call("POST", path_of("completions"), json=body, slow=True)
        if stream:
            return AsyncStream(await self._http.open_stream(call), Completion)
        return await self._http.fetch(Completion, call)


class Completions(BlockingResource[AsyncCompletions]):
    """Continuations of a prompt."""

    @overload
    def create(self, *, model: str, prompt: Prompt, stream: Literal[False] = False, **extra: Any) -> Completion: ...

    @overload
    def create(self, *, model: str, prompt: Prompt, stream: Literal[True], **extra: Any) -> Stream[Completion]: ...

    @overload
    def create(self, *, model: str, prompt: Prompt, stream: bool, **extra: Any) -> Completion | Stream[Completion]: ...

    def create(
        self, *, model: str, prompt: Prompt, stream: bool = False, **extra: Any
    ) -> Completion | Stream[Completion]:
        """Continue a prompt; the arguments are those of `AsyncCompletions.create`."""
        answer = run_blocking(self.twin.create(model=model, prompt=prompt, stream=stream, **extra))
        return Stream(answer) if isinstance(answer, AsyncStream) else answer
