"""The form of tool calls is read off the chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith_inference.tool_calls import parser_for


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        ("{% if tools %}Answer in <tool_call></tool_call>{% endif %}", "hermes"),
        ("{% if tools %}<tool_call><function=name></function></tool_call>{% endif %}", "qwen3_coder"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", "mistral"),
        ("{% if tools is not none %}<|python_tag|>{% endif %}", "llama3_json"),
        ("{% if tools %}call them as you like{% endif %}", None),
        ("{{ messages }}<tool_call>", None),
        ("{{ toolset }}<tool_call>", None),
    ],
)
def test_the_form_follows_from_the_template(tmp_path: Path, template: str, parser: str | None) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    assert parser_for(tmp_path) == parser


def test_templates_inside_the_tokenizers_configuration_count(tmp_path: Path) -> None:
    assert parser_for(tmp_path) is None
    named = [
        {"name": "default", "template": "{{ messages }}"},
        {"name": "tool_use", "template": "{{ tools }}[TOOL_CALLS]"},
    ]
    for chat_template in (named, named[1]["template"]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": chat_template}))
        assert parser_for(tmp_path) == "mistral"
