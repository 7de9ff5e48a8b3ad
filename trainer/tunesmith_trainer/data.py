"""Owns the rows of a data set: reading them, setting some aside for evaluation, and the order in which they are seen.
Must not know tokenizers, models or the control plane."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith_trainer.errors import Problem

RowKind = Literal["chat", "preference", "text"]

MAX_MESSAGES = 2000
"""Of a row: its labels take two renderings of the conversation for each answer, so time grows with the square."""

_PREFERENCE_KEYS = (
    "input",
    "preferred_output",
    "non_preferred_output",
    "preferred_completion",
    "non_preferred_completion",
)
_EXPECTED = {
    "chat": 'supervised tuning needs "messages", or "prompt" and "completion"',
    "preference": 'dpo needs "input", "preferred_output" and "non_preferred_output"',
    "text": 'continued pretraining needs "text"',
}
_TOO_MANY = "too_many_messages"
_CALL_ID = "call00001"
"""Of calls without one, which never overlap; some templates take only ids of nine letters and digits."""
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` 0 keeps an assistant's turn out of the loss; `extra` is what else the line says of it.

    Arguments of tool calls in `extra` are objects and no longer texts.
    """

    role: str
    content: str
    weight: int
    extra: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a file. A prompt and completion are held as a user's and an assistant's message, a raw text as one
    message of the role `text`.

    `number` is the 1-based line, `param` the field of the job that named the file. In a preference row `messages` end
    with the preferred answer, and `other_answer` is the other. `is_completion`: it was a prompt and its completion.
    """

    number: int
    param: str
    messages: tuple[Message, ...]
    tools: list[Any] | None
    other_answer: Message | None = None
    is_completion: bool = False


def read_rows(path: Path, param: str, kind: RowKind = "chat") -> Iterator[Row | Problem]:
    """Reads a JSONL file of lines of this kind, or a .txt file as one text; a problem stands for a bad line."""
    if path.suffix == ".txt":
        yield _whole_text(path, param, kind)
        return
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            yield _row(json.loads(line, parse_constant=_no_number), number, param, kind)
        except _BadRow as error:
            yield Problem(error.code, f"Row {number} {error}.", param, number)
        except (ValueError, RecursionError):
            yield Problem("invalid_file_format", f"Row {number} is not valid JSON.", param, number)


def completion_row(number: int, param: str, prompt: str, completion: str) -> Row:
    """A prompt and its completion as a row."""
    pair = (Message("user", prompt, 0, {}), Message("assistant", completion, 1, {}))
    return Row(number, param, pair, None, is_completion=True)


def count_lines(path: Path) -> int:
    """Lines of a file, empty ones included."""
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b"")) + 1


def held_out_indices(rows: int, seed: int) -> list[int]:
    """Which of `rows` training rows to keep for evaluation when there is no validation file: a tenth, 1 to 100."""
    count = min(100, max(1, rows // 10)) if rows > 1 else 0
    return sorted(int(index) for index in np.random.default_rng([seed, 0]).permutation(rows)[:count])


def steps_per_pass(rows: int, batch_size: int) -> int:
    """Optimizer steps of one pass; the last may be smaller."""
    return -(-rows // batch_size)


def indices_of_step(rows: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The rows of a step (1-based over the whole run): a pure function, so that resuming replays nothing."""
    pass_index, step_index = divmod(step - 1, steps_per_pass(rows, batch_size))
    order = _order_of_pass(rows, seed, pass_index)
    return [int(index) for index in order[step_index * batch_size : (step_index + 1) * batch_size]]


@lru_cache(maxsize=1)
def _order_of_pass(rows: int, seed: int, pass_index: int) -> NDArray[np.int64]:
    """Kept for the pass: of a million rows it takes as long as a small step."""
    return np.random.default_rng([seed, 1 + pass_index]).permutation(rows)


class _BadRow(ValueError):
    """Its text completes the sentence "Row 7 …"."""

    def __init__(self, what: str, code: str = "invalid_file_format") -> None:
        super().__init__(what)
        self.code = code


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line


def _whole_text(path: Path, param: str, kind: RowKind) -> Row | Problem:
    if kind != "text":
        return Problem("wrong_row_type", f"The file is plain text; {_EXPECTED[kind]}.", param)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return Problem("invalid_file_format", "The file is not UTF-8.", param)
    return Row(1, param, (Message("text", text, 1, {}),), None)


def _row(value: object, number: int, param: str, kind: RowKind) -> Row:
    if not isinstance(value, dict):
        raise _BadRow("is not a JSON object")
    found = _kind_of(value)
    if found != kind:
        raise _BadRow(f"is a {found} row; {_EXPECTED[kind]}", "wrong_row_type")
    if found == "preference":
        return _preference_row(value, number, param)
    if found == "text":
        if not isinstance(value["text"], str) or not value["text"].strip():
            raise _BadRow('has a "text" that is not a text, or is empty')
        return Row(number, param, (Message("text", value["text"], 1, {}),), None)
    return _chat_row(value, number, param)


def _kind_of(value: dict[str, Any]) -> RowKind:
    if any(key in value for key in _PREFERENCE_KEYS):
        return "preference"
    return "text" if "text" in value and "messages" not in value else "chat"


def _preference_row(value: dict[str, Any], number: int, param: str) -> Row:
    asked = value.get("input")
    if not isinstance(asked, dict) or not asked.get("messages"):
        raise _BadRow('needs "input" with a non-empty list "messages"')
    row = _chat_row(asked, number, param)
    prompt = [replace(message, weight=0) for message in row.messages]
    preferred = _only_answer(value, "preferred")
    return replace(row, messages=(*prompt, preferred), other_answer=_only_answer(value, "non_preferred"))


def _only_answer(value: dict[str, Any], name: str) -> Message:
    """OpenAI writes `…_output` in its guide and `…_completion` in its specification."""
    answers = value.get(f"{name}_output", value.get(f"{name}_completion"))
    if not isinstance(answers, list) or len(answers) != 1:
        raise _BadRow(f'needs "{name}_output" as a list of one message')
    answer = _message(answers[0])
    if answer.role != "assistant":
        raise _BadRow(f'has a "{name}_output" that is not an assistant\'s message')
    return replace(answer, weight=1)


def _chat_row(value: dict[str, Any], number: int, param: str) -> Row:
    if "messages" in value:
        messages = value["messages"]
        if not isinstance(messages, list) or not messages:
            raise _BadRow('needs a non-empty list "messages"')
        if len(messages) > MAX_MESSAGES:
            raise _BadRow(f"has {len(messages)} messages; split it into rows of at most {MAX_MESSAGES}", _TOO_MANY)
        tools = _tools(value)
        if tools is not None and not (isinstance(tools, list) and all(map(_is_tool, tools))):
            raise _BadRow('has "tools" that are not a list of {"function": {"name", …}}', "invalid_tools")
        return Row(number, param, tuple(_message(message) for message in messages), tools or None)
    prompt, completion = value.get("prompt"), value.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise _BadRow('needs "messages", or "prompt" and "completion" as texts')
    return completion_row(number, param, prompt, completion)


def _tools(value: dict[str, Any]) -> Any:
    """The tools of a row; functions are what OpenAI had before them."""
    functions = value.get("functions")
    if isinstance(functions, list) and functions:
        return [{"type": "function", "function": one} for one in functions]
    return functions or value.get("tools")


def _is_tool(tool: object) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _message(value: object) -> Message:
    if not isinstance(value, dict) or value.get("role") not in _ROLES:
        raise _BadRow(f"has a message whose role is not one of {', '.join(_ROLES)}")
    weight = 1 if value.get("weight") is None else value["weight"]
    if weight not in (0, 1):
        raise _BadRow("has a message whose weight is neither 0 nor 1")
    value = _with_tool_calls(value)
    extra = {key: part for key, part in value.items() if key not in ("role", "content", "weight")}
    if extra.get("tool_calls"):
        extra["tool_calls"] = _calls(extra["tool_calls"])
    return Message(value["role"], _text(value.get("content"), extra), int(weight), extra)


def _with_tool_calls(message: dict[str, Any]) -> dict[str, Any]:
    """A message in today's form, where it calls a function, or answers one, in that which OpenAI had before tools."""
    if message.get("function_call"):
        return message | {"tool_calls": [{"id": _CALL_ID, "type": "function", "function": message["function_call"]}]}
    return message | {"role": "tool", "tool_call_id": _CALL_ID} if message["role"] == "function" else message


def _calls(calls: object) -> list[dict[str, Any]]:
    """Tool calls with their arguments read, which chat templates write in their own way."""
    read = []
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict):
            raise _BadRow('has a tool call that is not {"function": {"name", "arguments"}}', "invalid_tool_calls")
        given = function.get("arguments") or "{}"
        try:
            arguments = json.loads(given, parse_constant=_no_number) if isinstance(given, str) else given
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise _BadRow("has a tool call whose arguments are not a JSON object", "invalid_tool_calls")
        read.append({**call, "function": {**function, "arguments": arguments}})
    return read


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _text(content: object, extra: dict[str, Any]) -> str:
    """Text of a message; parts of type text are joined as engines do. Empty only where a tool call says the rest."""
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        if not all(isinstance(part, str) for part in parts):
            what = "has a message part that is not text; models here are tuned on text only"
            raise _BadRow(what, "unsupported_content")
        return "\n".join(str(part) for part in parts)
    is_empty = content is None or (isinstance(content, str) and not content.strip())
    if is_empty and isinstance(extra.get("refusal"), str):
        return str(extra["refusal"])
    if content is None and extra.get("tool_calls"):
        return ""
    if not isinstance(content, str):
        raise _BadRow("has a message without text")
    return content


def _part(part: object) -> object:
    """The text of a part, which may be one of a refusal; None where it is none."""
    kind = part.get("type") if isinstance(part, dict) else None
    return part.get(kind) if isinstance(part, dict) and kind in ("text", "refusal") else None
