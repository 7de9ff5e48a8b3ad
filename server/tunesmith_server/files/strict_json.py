"""Owns how JSON of users is read: strictly, as every reader after the upload must understand it alike. Pure.

It must not know rows or what they mean.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from tunesmith_server.files.faults import Fault, shown

MAX_DEPTH = 64
"""What gateways take in a request: a deeper row could not be asked for, and breaks readers that recurse."""

_SHOWN_START = 10


class BadJson(Exception):
    """Text that is no strict JSON; the fault goes on from "Line 7 …"."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(code)
        self.fault = Fault(code, what)


def parse(text: str) -> object:
    """The value that is written there; raises BadJson for NaN, a key twice, half of a character, deep nesting."""
    text = text.rstrip(" \t\r\n")  # for places at the end of a line, and nothing that JSON does not skip
    try:
        value: object = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise BadJson("invalid_json", f"is not valid JSON: {_told(error)}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise BadJson("invalid_json", "has a number with too many digits") from None
    # Most texts have fewer brackets than that and need no walk.
    if text.count("{") + text.count("[") > MAX_DEPTH and _is_deeper(value):
        raise _too_deep()
    if "\\u" in text and not _is_encodable(value):
        raise BadJson("invalid_unicode", r"has half of a \ud800-style pair, which is no character")
    return value


def _told(error: json.JSONDecodeError) -> str:
    where = f"{error.msg} at character {error.pos + 1}"
    # Tables, YAML and plain words are known by how they begin.
    return f"{where}; it begins with {shown(error.doc[:_SHOWN_START])}" if error.pos == 0 and error.doc else where


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadJson("duplicate_key", f"has the key {shown(twice)} twice in one object")
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise BadJson("invalid_json", f"has {name}, which is not JSON")


def _too_deep() -> BadJson:
    return BadJson("invalid_json", f"is nested deeper than {MAX_DEPTH} levels")


def _is_deeper(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return any(isinstance(parent, (dict, list)) for parent in level)


def _is_encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
