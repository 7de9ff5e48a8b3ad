"""Owns what vLLM's grammars of tool calls lack: an end to blanks in arguments, and none where none are named.

It must not know the gateway: vLLM loads it into its own process, as `--tool-parser-plugin`. Here and not in requests,
because there the schema is also what the model is shown, which has to be what it saw in training.
"""

from __future__ import annotations

from typing import Any

from vllm.tool_parsers import ToolParser

_MAX_BLANKS = 16
"""As in `dialect.py`."""
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
"""What it means to OpenAI that a function names no parameters; to vLLM it is any JSON."""

_structural_tag = ToolParser.get_structural_tag


def _bounded_tag(self: Any, *request: Any, **options: Any) -> Any:
    tag = _structural_tag(self, *request, **options)
    if tag is not None:
        _bound(tag.format)
    return tag


def _bound(node: Any) -> None:
    """Bounds every schema of arguments in a format, in place."""
    if isinstance(node, list):
        for each in node:
            _bound(each)
    elif getattr(node, "type", None) == "json_schema":
        node.max_whitespace_cnt = _MAX_BLANKS
        node.json_schema = _NO_PARAMETERS if node.json_schema in (True, {}) else node.json_schema
    elif hasattr(node, "type"):
        _bound([value for _, value in node])


ToolParser.get_structural_tag = _bounded_tag
