"""Owns which form of tool calls a model writes, told by the chat template that asks it for them.

It must not know engines or requests.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_FORMS = (
    ("[TOOL_CALLS]", "mistral"),
    ("<function=", "qwen3_coder"),
    ("<start_function_call>", "functiongemma"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
)
"""What a template has its model write around a call, and vLLM's name for the parser of it; the first that is met."""


def parser_for(model_folder: Path) -> str | None:
    """vLLM's parser for the calls that this model writes; None where its template shows it no tools.

    A template that shows tools and asks for calls in a form that is not known here counts as one that shows none: its
    calls would reach the client as text.
    """
    template = _template(model_folder)
    if re.search(r"\btools\b", template) is None:
        return None
    return next((parser for marker, parser in _FORMS if marker in template), None)


def _template(folder: Path) -> str:
    """The chat template, or all of them where a model has several; empty where there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    config = folder / "tokenizer_config.json"
    found: Any = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    if isinstance(found, list):
        return "\n".join(str(named.get("template")) for named in found)
    return found if isinstance(found, str) else ""
