from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from tunesmith_inference.errors import engine_failed
from tunesmith_inference.streaming import DONE, relay


async def _chunks(*, fails: bool = False) -> AsyncIterator[dict[str, Any]]:
    part = {"prompt_tokens": 1, "completion_tokens": 1}
    yield {"model": "r-1", "choices": [{"delta": {"content": "r-1 ü"}}], "usage": part}
    if fails:
        raise engine_failed()
    yield {"model": "r-1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}


async def _relayed(*, wanted: bool = False, fails: bool = False) -> tuple[list[Any], list[Any]]:
    metered: list[Any] = []
    events = [event async for event in relay(_chunks(fails=fails), "ft:mine", wanted, metered.append)]
    parsed = [event if event == DONE else json.loads(event.removeprefix(b"data: ")) for event in events]
    return parsed, metered


async def test_chunks_carry_the_clients_name_and_end_with_done() -> None:
    events, metered = await _relayed()
    assert events == [{"model": "ft:mine", "choices": [{"delta": {"content": "r-1 ü"}}]}, DONE]
    assert metered == [{"prompt_tokens": 1, "completion_tokens": 2}]


async def test_usage_is_passed_on_where_it_is_wanted() -> None:
    events, _ = await _relayed(wanted=True)
    assert events[0]["usage"] is None
    assert events[1]["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_an_engine_that_fails_ends_the_stream_with_an_error_and_not_with_done() -> None:
    events, metered = await _relayed(fails=True)
    assert metered == [{"prompt_tokens": 1, "completion_tokens": 1}], "what was made until then was used"
    assert events[-1]["error"]["code"] == "engine_error"
    assert DONE not in events


async def test_who_leaves_a_stream_of_several_answers_has_used_all_of_them() -> None:
    async def chunks() -> AsyncIterator[dict[str, Any]]:
        for made in (1, 2):
            for index in range(4):  # two answers to each of two prompts
                usage = {"prompt_tokens": 10 + index // 2, "completion_tokens": made, "total_tokens": 0}
                yield {"model": "r-1", "choices": [{"index": index, "text": "a"}], "usage": usage}
        yield {"model": "r-1", "choices": [], "usage": {"prompt_tokens": 21, "completion_tokens": 9}}

    for left_after, used in ((8, (21, 8)), (9, (21, 9))):
        metered: list[Any] = []
        events = relay(chunks(), "ft:mine", True, metered.append, answers=2)
        for _ in range(left_after):
            await anext(events)
        await events.aclose()  # type: ignore[attr-defined]  # a generator, whatever its type says
        assert [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in metered] == [used]


async def test_who_leaves_early_has_used_what_was_made() -> None:
    metered: list[Any] = []
    events = relay(_chunks(), "ft:mine", False, metered.append)
    await anext(events)
    await events.aclose()  # type: ignore[attr-defined]  # a generator, whatever its type says
    assert metered == [{"prompt_tokens": 1, "completion_tokens": 1}]
