"""Owns the tokenizer of a model folder: reading it, and telling its chat template which day it is.
Must not know rows, packing or the control plane."""

from datetime import date
from pathlib import Path
from typing import Any, Protocol, cast

# What a template may ask of a day: strftime's directives, and those of GNU that drop leading zeros.
_DIRECTIVES = ("%-d", "%-m", "%-I", *(f"%{letter}" for letter in "aAwdbBmyYHIpMSfjUWcxXeDF"))


class Tokenizer(Protocol):
    """What rendering uses of a transformers tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None
    eos_token: str | None
    chat_template: str | dict[str, str] | None
    all_special_tokens: list[str]
    added_tokens_decoder: dict[int, Any]

    def __call__(
        self, text: list[str], *, add_special_tokens: bool, return_attention_mask: bool
    ) -> dict[str, list[list[int]]]: ...
    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> str: ...
    def decode(self, token_ids: list[int], **options: Any) -> str: ...


def load_tokenizer(folder: Path, day: date | None = None) -> Tokenizer:
    """Reads the tokenizer of a model folder; runs none of the folder's code.

    Its chat template is told that it is always the `day`, if one is given: rows that name it must be the same whenever
    a run goes on.
    """
    from transformers import AutoTokenizer  # here because it takes seconds to import

    read = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer = cast("Tokenizer", read)
    templates = tokenizer.chat_template
    if day is None or templates is None:
        return tokenizer
    if isinstance(templates, str):
        tokenizer.chat_template = _told(templates, day)
    else:
        tokenizer.chat_template = {name: _told(template, day) for name, template in templates.items()}
    return tokenizer


def begin_of_text(tokenizer: Tokenizer) -> list[int]:
    """The token that this tokenizer puts before a text, and with it every server; none where it puts none."""
    frame = tokenizer([""], add_special_tokens=True, return_attention_mask=False)["input_ids"][0]
    return frame[:1] if frame and frame[0] == tokenizer.bos_token_id else []


def has_half_character(text: str) -> bool:
    """Whether a lone surrogate is in the text, as JSON can write it: no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _told(template: str, day: date) -> str:
    """The template, with a macro in the place of the function that servers give it."""
    if "strftime_now" not in template:
        return template
    replaced = "".join(f"|replace('{each}', '{day.strftime(each)}')" for each in _DIRECTIVES)
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro -%}}{template}"
