"""Owns what is taken out of captures before they leave this process: by rules, then by the operator's hook.

It must not know where captures go. It fails closed: what cannot be redacted as configured raises, and nobody keeps it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import regex
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tunesmith_inference.captures import Capture, RedactionFailed
from tunesmith_inference.hooks import Hook, HookFailed
from tunesmith_inference.texts import Change, changed, changed_message, changed_tool

_BUNDLED = Path(__file__).with_name("redaction_rules.yaml")
_RULE_SECONDS = 2.0
"""A pattern that takes longer for one text counts as failed: texts are hostile, and patterns can be slow by them."""
_MAX_METADATA = (64, 512)


class _RuleEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    pattern: str
    replacement: str


@dataclass(frozen=True, slots=True)
class Rule:
    """What matches is replaced by a text."""

    pattern: Any
    replacement: str

    def apply(self, text: str) -> str:
        """The text without what matches; raises TimeoutError."""
        found: str = self.pattern.sub(lambda _match: self.replacement, text, timeout=_RULE_SECONDS)
        return found


def load_rules(path: Path | None) -> tuple[Rule, ...]:
    """The rules of a YAML file, those that come along when there is none; raises ValueError with a sentence."""
    source = path or _BUNDLED
    try:
        entries = TypeAdapter(tuple[_RuleEntry, ...]).validate_python(yaml.safe_load(source.read_text()) or ())
    except (OSError, yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        what = "a YAML list of {name, pattern, replacement}"
        raise ValueError(f"TUNESMITH_REDACTION_RULES: {source} is not {what}: {type(error).__name__}.") from error
    return tuple(Rule(_compiled(source, entry), entry.replacement) for entry in entries)


class Redactor:
    """Redacts captures by rules, and by a hook where there is one.

    The hook gets the texts that the rules leave, and answers `{"text": …}` for each.
    """

    def __init__(self, rules: Sequence[Rule], hook: Hook | None) -> None:
        self._rules = rules
        self._hook = hook

    async def redacted(self, capture: Capture) -> Capture:
        """The capture as it may be kept; raises RedactionFailed."""
        try:
            # The matching lets go of the interpreter, so that long texts hold no other request up.
            capture = await asyncio.to_thread(_changed, capture, self._by_rules)
            return capture if self._hook is None else await self._by_hook(capture, self._hook)
        except (TimeoutError, HookFailed) as error:
            raise RedactionFailed(str(error) or "a rule took too long") from error

    def _by_rules(self, text: str) -> str:
        for rule in self._rules:
            text = rule.apply(text)
        return text

    async def _by_hook(self, capture: Capture, hook: Hook) -> Capture:
        texts: list[str] = []

        def gathered(text: str) -> str:
            texts.append(text)
            return text

        _changed(capture, gathered)
        results = iter(_texts_of(await hook.ask(texts)))
        return _changed(capture, lambda _text: next(results))


def _changed(capture: Capture, change: Change) -> Capture:
    """The capture with each text changed, always in the same order."""
    messages = [changed_message(message, change) for message in json.loads(capture.messages)]
    tools = [changed_tool(tool, change) for tool in json.loads(capture.tools or "[]")]
    longest_key, longest_value = _MAX_METADATA
    pairs = changed(capture.metadata, change).items()
    return replace(
        capture,
        messages=json.dumps(messages),
        tools=json.dumps(tools) if tools else "",
        answer=json.dumps(changed_message(json.loads(capture.answer), change)),
        metadata={key[:longest_key]: value[:longest_value] for key, value in pairs if key},
    )


def _texts_of(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    for result in results:
        text = result.get("text")
        if not isinstance(text, str) or not _is_text(text):
            raise HookFailed("a result of its answer has no text")
        yield text


def _is_text(text: str) -> bool:
    """Whether it has no half of a surrogate pair, which JSON may hold and no other process takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _compiled(source: Path, entry: _RuleEntry) -> Any:
    try:
        return regex.compile(entry.pattern)
    except regex.error as error:
        sentence = f"the pattern of the rule {entry.name!r} in {source} is wrong: {error}."
        raise ValueError(f"TUNESMITH_REDACTION_RULES: {sentence}") from error
