"""The shape of conversations for chat templates; `tests/inference/test_engine.py` holds it against vLLM."""

from typing import Any

import pytest

from tunesmith_trainer.conversation import as_served, messages_as_served, tools_as_served
from tunesmith_trainer.data import Message


def said(*messages: tuple[str, str], knows_developer: bool = False) -> list[tuple[str, str]]:
    """Roles and contents that a template is given."""
    given = [as_served(Message(role, content, 1, {})) for role, content in messages]
    served = messages_as_served(given, knows_developer=knows_developer)
    return [(message["role"], message["content"]) for message in served]


def test_a_developers_words_are_the_systems_and_come_first() -> None:
    conversation = (("system", "a"), ("user", "b"), ("developer", "c"), ("assistant", "d"))

    assert said(*conversation) == [("system", "a\n\nc"), ("user", "b"), ("assistant", "d")]
    assert said(*conversation, knows_developer=True) == list(conversation)


def test_messages_of_the_system_stay_where_they_are_without_a_developer() -> None:
    conversation = (("user", "a"), ("system", "b"), ("assistant", "c"))

    assert said(*conversation) == list(conversation)


def test_only_what_engines_tell_is_told() -> None:
    extra = {"name": "n", "tool_calls": [{"id": "1"}], "tool_call_id": "1", "mood": "good"}
    messages = [Message(role, "a", 1, extra) for role in ("user", "assistant", "tool")]

    told = [message.keys() - {"role", "content"} for message in map(as_served, messages)]
    assert told == [{"name"}, {"name", "tool_calls"}, {"name", "tool_call_id"}]


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ({"parameters": {}, "name": "f"}, {"name": "f", "description": None, "parameters": {}}),
        (
            {"strict": True, "name": "f", "description": "d", "mood": "good"},
            {"name": "f", "description": "d", "parameters": None, "strict": True},
        ),
    ],
)
def test_tools_have_the_engines_keys_in_its_order(function: dict[str, Any], told: dict[str, Any]) -> None:
    (tool,) = tools_as_served([{"function": function}]) or []

    assert list(tool.items()) == [("type", "function"), ("function", told)]
    assert list(tool["function"]) == list(told)
    assert tools_as_served([]) is None
