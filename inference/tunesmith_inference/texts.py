"""Owns which values of a request and of an answer are texts: what may have to be moderated or redacted.

It must not know why; everything here is pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Change = Callable[[str], str]

_MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id")
"""What is kept of a message: all that a dataset may have."""
_OBJECTS_READ = ("tools", "chat_template_kwargs")
"""Parameters that templates write into the prompt as they see fit."""
_WORDS = {
    "role": frozenset(["system", "developer", "user", "assistant", "tool", "function"]),
    "type": frozenset(["text", "refusal", "function"]),
}
"""Values that say nothing, by their key."""
_SAID_KEYS = ("content", "reasoning", "reasoning_content", "refusal")


def prompt_texts(parameters: Mapping[str, Any]) -> list[str]:
    """All that the model reads of a request: a text for each message or prompt, and one for each object beside them."""
    texts = ["\n".join(_strings(message)) for message in parameters.get("messages", ())]
    texts += [text for key in ("prompt", "suffix") for text in _strings(parameters.get(key))]
    texts += [json.dumps(parameters[key], ensure_ascii=False) for key in _OBJECTS_READ if parameters.get(key)]
    return [text for text in texts if text.strip()]


def said_in(choice: Mapping[str, Any]) -> str:
    """All that a choice of an answer, or of a chunk of one, brings to the client."""
    message = choice.get("message") or choice.get("delta") or {}
    said = [choice.get("text") or "", *(message.get(key) or "" for key in _SAID_KEYS)]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        said += [function.get("name") or "", function.get("arguments") or ""]
    return "".join(said)


def changed_message(message: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """A message with its texts changed; roles, ids and names of functions stay, and what no dataset has is left out."""
    kept = {key: message[key] for key in _MESSAGE_KEYS if message.get(key) is not None}
    content = kept.get("content")
    if isinstance(content, str):
        kept["content"] = change(content)
    elif isinstance(content, list):
        kept["content"] = [{"type": "text", "text": change(_text_of(part))} for part in content]
    if isinstance(kept.get("name"), str) and change(kept["name"]) != kept["name"]:
        # Whatever it is changed to, hardly is a name.
        del kept["name"]
    if isinstance(kept.get("tool_calls"), list):
        kept["tool_calls"] = [_changed_call(call, change) for call in kept["tool_calls"]]
    return kept


def changed_tool(tool: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """A tool with its texts changed, all but its name."""
    function = tool.get("function")
    if not isinstance(function, dict):
        return {key: changed(value, change) for key, value in tool.items()}
    texts = {key: value for key, value in function.items() if key != "name"}
    return {**tool, "function": {"name": function.get("name"), **changed(texts, change)}}


def changed(value: Any, change: Change) -> Any:
    """A JSON value with every text in it changed, keys too, and numbers where they are not the same afterwards."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): changed(one, change) for key, one in value.items()}
    if isinstance(value, list):
        return [changed(one, change) for one in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = change(str(value))
        return value if text == str(value) else text
    return value


def _text_of(part: Mapping[str, Any]) -> str:
    return str(part.get("text") or part.get("refusal") or "")


def _changed_call(call: Any, change: Change) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return changed(call, change)
    arguments = _changed_json(function["arguments"], change)
    return {**call, "function": {"name": function.get("name"), "arguments": arguments}}


def _changed_json(text: str, change: Change) -> str:
    """JSON in a text, changed value by value, so that it is JSON afterwards; a text that is none as a whole."""
    try:
        value = json.loads(text)
        new = changed(value, change)
    except (ValueError, RecursionError):
        return change(text)
    return text if new == value else json.dumps(new, ensure_ascii=False)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if not (isinstance(one, str) and one in _WORDS.get(key, ())):
                yield from _strings(one)
    elif isinstance(value, Sequence):
        for one in value:
            yield from _strings(one)
