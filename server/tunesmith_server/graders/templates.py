"""Owns `{{item.x}}` and `{{sample.output_text}}`: what may stand in a template and what becomes of it.

It must not know graders. A value is looked up and never executed; the result has a bounded length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_RENDERED = 32_768
"""Characters of a rendered text; more would keep the metrics busy for seconds."""

_VARIABLE = re.compile(r"\{\{([^{}]*)\}\}")
_STEP = r"[^.\[\]\s]+"
_PATH = re.compile(rf"(item|sample)((?:\.{_STEP}|\[\d{{1,9}}\])+)")
_EACH_STEP = re.compile(_STEP)
_SAMPLE_FIELDS = ("output_text", "output_json")
_UNREAD, _NO_JSON = object(), object()


class UnknownVariableError(Exception):
    """The template names something that is not there; the text says what."""


class SampleNotJsonError(Exception):
    """The template reads the sample as JSON, which it is not."""


class TextTooLongError(Exception):
    """The rendered text is over MAX_RENDERED characters."""


class Sample:
    """A model's answer as templates see it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._json: Any = _UNREAD

    def field(self, name: str) -> Any:
        """`output_text` or `output_json`; raises SampleNotJsonError or UnknownVariableError."""
        if name == "output_text":
            return self._text
        if name != "output_json":
            raise UnknownVariableError(f"sample.{name}")
        if self._json is _UNREAD:
            # Once: a template may name it thousands of times.
            self._json = _read_json(self._text)
        if self._json is _NO_JSON:
            raise SampleNotJsonError
        return self._json


def render(template: str, item: Mapping[str, Any], sample: Sample) -> str:
    """The template with every variable replaced; raises the errors above."""
    parts: list[str] = []
    length = end = 0
    for variable in _VARIABLE.finditer(template):
        for part in (template[end : variable.start()], _text(_look_up(variable[1], item, sample))):
            length += len(part)
            if length > MAX_RENDERED:
                raise TextTooLongError
            parts.append(part)
        end = variable.end()
    if length + len(template) - end > MAX_RENDERED:
        raise TextTooLongError
    return "".join([*parts, template[end:]])


def check(template: str) -> None:
    """Passes when every variable is one that a template can name; raises UnknownVariableError."""
    for variable in _VARIABLE.finditer(template):
        namespace, steps = _read_path(variable[1])
        if namespace == "sample" and steps[0] not in _SAMPLE_FIELDS:
            raise UnknownVariableError(variable[1].strip())


def _look_up(text: str, item: Mapping[str, Any], sample: Sample) -> Any:
    namespace, steps = _read_path(text)
    value: Any = item
    if namespace == "sample":
        value, steps = sample.field(steps[0]), steps[1:]
    for step in steps:
        try:
            value = value[int(step) if isinstance(value, list) else step]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UnknownVariableError(text.strip()) from error
        # A text can be indexed as well, but nobody means that.
        if not isinstance(value, str | int | float | dict | list | None):
            raise UnknownVariableError(text.strip())
    return value


def _read_path(text: str) -> tuple[str, list[str]]:
    path = _PATH.fullmatch(text.strip())
    if path is None:
        raise UnknownVariableError(text.strip()[:100])
    return path[1], _EACH_STEP.findall(path[2])


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NO_JSON


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise TextTooLongError from error
