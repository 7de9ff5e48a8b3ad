"""Owns where vLLM means by the same words something else than OpenAI: what it is asked instead, its answer put right.

It must not know HTTP or streams; everything here is pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_TOP_LOGPROBS = 20
"""As many as OpenAI gives; engines are started to give one more."""

_MAX_BLANKS = 16
"""Between two parts of a JSON text: enough for one that is indented, and an end where a model would go on for ever."""
_FALLS_BACK = frozenset(
    [
        "allOf",
        "contains",
        "maxContains",
        "minContains",
        "multipleOf",
        "pattern",
        "patternProperties",
        "propertyNames",
        "uniqueItems",
    ]
)
"""For schemas with these vLLM may choose a grammar engine that follows them; the one that counts blanks does not."""


def in_its_words(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body that has vLLM do what OpenAI's API promises for this one."""
    most = body.get("top_logprobs")
    if isinstance(most, int) and 0 < most <= MAX_TOP_LOGPROBS:
        # It puts the token that was chosen before the likeliest ones, and has no room for the last of them then.
        return {**body, "top_logprobs": most + 1}
    return body


def with_few_blanks(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body that asks for the same form of answer with few blanks in a row; the same body where it cannot be."""
    form = body.get("response_format") or {}
    schema = {"type": "object"} if form.get("type") == "json_object" else _schema(form)
    if schema is None or _has_key(schema, _FALLS_BACK):
        return body
    bounded = {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": _MAX_BLANKS}
    return {**body, "response_format": {"type": "structural_tag", "format": bounded}}


def put_right(answer: dict[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """An answer, or a chunk of one, as OpenAI would give it to `body`; changes it in place."""
    if most := body.get("top_logprobs"):
        for choice in answer.get("choices", ()):
            for token in (choice.get("logprobs") or {}).get("content") or ():
                token["top_logprobs"] = sorted(token["top_logprobs"], key=_unlikeliness)[:most]
    usage = answer.get("usage")
    if usage and body.get("echo") and body.get("max_tokens") == 0:
        # It makes a token that nobody is given.
        usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
    return answer


def _schema(form: Mapping[str, Any]) -> Any:
    return form["json_schema"]["schema"] if form.get("type") == "json_schema" else None


def _has_key(value: Any, keys: frozenset[str]) -> bool:
    if isinstance(value, dict):
        return not keys.isdisjoint(value) or any(_has_key(inner, keys) for inner in value.values())
    return isinstance(value, list) and any(_has_key(inner, keys) for inner in value)


def _unlikeliness(token: Mapping[str, Any]) -> float:
    return -float(token["logprob"])
