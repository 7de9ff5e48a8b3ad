"""Owns the shape in which a conversation reaches a chat template: exactly that in which vLLM hands it over in serving.
Must not know tokenizers, labels or files. What vLLM does is in its `renderers/chat_utils.py` and `renderers/hf.py`."""

from collections.abc import Sequence
from typing import Any

from tunesmith_trainer.data import Message

_BETWEEN_SYSTEM_MESSAGES = "\n\n"


def messages_as_served(served: Sequence[dict[str, Any]], *, knows_developer: bool) -> list[dict[str, Any]]:
    """Messages for a template, each from `as_served`. Most know no `developer`; there such a message is the system's.

    All of the system are then a single one before all others, since that is all that some templates take. Of one thing
    this is not vLLM's: it turns the keys of a call around, which shows where a template writes a call as a whole, as
    Mistral's does. There the name stays first, as the model has learnt to call.
    """
    if knows_developer or all(message["role"] != "developer" for message in served):
        return list(served)
    others = [message for message in served if message["role"] not in ("system", "developer")]
    texts = [message["content"] for message in served if message["role"] in ("system", "developer")]
    return [{"role": "system", "content": _BETWEEN_SYSTEM_MESSAGES.join(filter(None, texts))}, *others]


def as_served(message: Message) -> dict[str, Any]:
    """A message with what a template may see of it."""
    served: dict[str, Any] = {"role": message.role, "content": message.content}
    told = {"assistant": ("tool_calls", "name"), "tool": ("tool_call_id", "name")}.get(message.role, ("name",))
    return served | {key: message.extra[key] for key in told if message.extra.get(key)}


def tools_as_served(tools: Sequence[Any] | None) -> list[dict[str, Any]] | None:
    """The tools for a template; in this order, and with null for what is not said."""
    return [_tool_as_served(tool) for tool in tools] if tools else None


def _tool_as_served(tool: Any) -> dict[str, Any]:
    function = tool["function"]
    served = {key: function.get(key) for key in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        served["strict"] = function["strict"]
    return {"type": "function", "function": served}
