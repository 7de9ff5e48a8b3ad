"""Owns the moderation hook in front of prompts and answers: what an operator's service flags, nobody is sent.

It must not know HTTP's routes or engines. Texts never get into a log or a metric.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from tunesmith_inference.errors import invalid_request, moderation_unavailable, prompt_refused
from tunesmith_inference.hooks import Hook, HookFailed
from tunesmith_inference.request_body import InferenceRequest
from tunesmith_inference.texts import prompt_texts, said_in

FILTERED = "content_filter"
"""Why an answer ended that was flagged."""

Chunk = dict[str, Any]

_log = logging.getLogger(__name__)


class Moderation:
    """Asks `hook` about texts in the form of OpenAI's moderations; without one, everything passes.

    `count` hears of each verdict: prompt or answer, and passed, flagged or failed. While the hook fails, texts pass
    with `fails_open`, and are refused without. Of a stream, `every` characters at once are asked about.
    """

    def __init__(
        self,
        hook: Hook | None,
        *,
        model: str,
        fails_open: bool,
        every: int,
        count: Callable[[str, str], None],
    ) -> None:
        self._hook = hook
        self._more = {"model": model} if model else {}
        self._fails_open = fails_open
        self._every = every
        self._count = count

    async def check_prompt(self, asked: InferenceRequest) -> None:
        """Passes when the prompt may be answered; raises 400 content_policy_violation, or 503."""
        if self._hook is None:
            return
        at = "messages" if "messages" in asked.parameters else "prompt"
        if _has_tokens(asked.parameters.get("prompt")):
            message = "Prompts are moderated here, and tokens cannot be read. Send `prompt` as text."
            raise invalid_request("prompt_not_text", message, at)
        if any(await self._flagged(self._hook, "prompt", prompt_texts(asked.parameters))):
            raise prompt_refused(at)

    async def checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer without what was said in flagged choices; raises 503."""
        if self._hook is None:
            return answer
        choices = answer["choices"]
        flagged = await self._flagged(self._hook, "answer", [said_in(choice) for choice in choices])
        pairs = zip(choices, flagged, strict=True)
        return {**answer, "choices": [_emptied(choice) if is_flagged else choice for choice, is_flagged in pairs]}

    def guarded(self, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
        """The chunks of an answer, held until the answer so far has passed. A flagged one ends there."""
        return chunks if self._hook is None else self._guarded(self._hook, chunks)

    async def _guarded(self, hook: Hook, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
        ended: set[int] = set()
        async for portion, said in _portions(chunks, self._every):
            if said and any(await self._flagged(hook, "answer", list(said.values()))):
                for chunk in _filtered_end(portion, sorted(said.keys() - ended)):
                    yield chunk
                return
            ended.update(choice["index"] for choice in _choices(portion) if choice.get("finish_reason"))
            for chunk in portion:
                yield chunk

    async def _flagged(self, hook: Hook, side: str, texts: Sequence[str]) -> list[bool]:
        """Whether each text is flagged; empty ones are not asked about."""
        asked = [text for text in texts if text.strip()]
        if not asked:
            return [False] * len(texts)
        try:
            verdicts = dict(zip(asked, _verdicts(await hook.ask(asked, **self._more)), strict=True))
        except HookFailed as error:
            self._count(side, "failed")
            _log.warning("the moderation service gave no verdict: %s", error)
            if self._fails_open:
                return [False] * len(texts)
            raise moderation_unavailable() from None
        flagged = [verdicts.get(text, False) for text in texts]
        self._count(side, "flagged" if any(flagged) else "passed")
        return flagged


async def _portions(chunks: AsyncIterator[Chunk], characters: int) -> AsyncIterator[tuple[list[Chunk], dict[int, str]]]:
    """Chunks that go on together, with all that each choice has said so far; with {} where they say nothing new."""
    said: dict[int, str] = {}
    held: list[Chunk] = []
    new = 0
    async for chunk in chunks:
        held.append(chunk)
        for choice in _choices([chunk]):
            text = said_in(choice)
            said[choice["index"]] = said.get(choice["index"], "") + text
            new += len(text)
        if not 0 < new < characters:
            yield held, dict(said) if new else {}
            held, new = [], 0
    if held:
        yield held, said


def _choices(chunks: Sequence[Chunk]) -> Iterator[dict[str, Any]]:
    return (choice for chunk in chunks for choice in chunk.get("choices", ()))


def _filtered_end(portion: Sequence[Chunk], choices: Sequence[int]) -> list[Chunk]:
    """How an answer ends whose last portion was flagged: without it, and with what it has used."""
    last = portion[-1]
    head: Chunk = {key: last[key] for key in ("id", "object", "created", "model") if key in last}
    says_nothing: dict[str, Any] = {"text": ""} if last.get("object") == "text_completion" else {"delta": {}}
    ends = [{"index": index, **says_nothing, "logprobs": None, "finish_reason": FILTERED} for index in choices]
    used = {"usage": last.get("usage")}
    return [{**head, "choices": ends, **used}, {**head, "choices": [], **used}]


def _verdicts(results: Sequence[dict[str, Any]]) -> list[bool]:
    flags = [result.get("flagged") for result in results]
    if not all(isinstance(flag, bool) for flag in flags):
        raise HookFailed("a result of its answer does not say whether it is flagged")
    return [flag is True for flag in flags]


def _emptied(choice: dict[str, Any]) -> dict[str, Any]:
    said = {"text": ""} if "text" in choice else {"message": {"role": "assistant", "content": "", "refusal": None}}
    return {"index": choice["index"], **said, "finish_reason": FILTERED, "logprobs": None}


def _has_tokens(prompt: object) -> bool:
    return isinstance(prompt, list) and not all(isinstance(part, str) for part in prompt)
