"""Owns raw texts as examples: every token is learnt, and a long text becomes several pieces.
Must not know chat templates, packing or the control plane."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import Problem
from tunesmith_trainer.example import Example
from tunesmith_trainer.tokenizer import Tokenizer, begin_of_text, has_half_character

_SECTION_CHARACTERS = 1 << 20  # tokenised at once: what a tokenizer remembers of a text is many times its size
_PROMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Piece(Example):
    """A piece of a text, all of it labelled but its first token."""

    @property
    def prompt_token_ids(self) -> list[int]:
        """The beginning of the piece: something to go on from."""
        return [int(token) for token in self.token_ids[: min(_PROMPT_TOKENS, len(self.token_ids) // 2)]]


def render_text(tokenizer: Tokenizer, row: Row, limit: int) -> list[Example] | Problem:
    """The text of a row in pieces of at most `limit` tokens.

    It begins with the begin-of-text token where the tokenizer puts one, and ends with the end-of-text token where there
    is one. A piece begins with the last token of the piece before it, so that each token but the text's first is
    learnt once. A problem stands for a text that cannot be written down.
    """
    (message,) = row.messages
    if has_half_character(message.content):
        what = (
            f"Row {row.number} has half of a character (a lone surrogate) in it; write the whole one, or leave it out."
        )
        return Problem("invalid_file_format", what, row.param, row.number)
    token_ids = _framed(tokenizer, message.content)
    starts = range(0, max(1, len(token_ids) - 1), limit - 1)
    return [_piece(row.number, token_ids[start : start + limit]) for start in starts]


def _framed(tokenizer: Tokenizer, text: str) -> NDArray[np.int32]:
    first = begin_of_text(tokenizer)
    last = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts = [np.array(first, dtype=np.int32)]
    for section in _sections(text):
        (token_ids,) = tokenizer([section], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        parts.append(np.array(token_ids, dtype=np.int32))
    return np.concatenate([*parts, np.array(last, dtype=np.int32)])


def _sections(text: str) -> Iterator[str]:
    """The text in parts that end with a line, where tokenizers cut as well."""
    start = 0
    while len(text) - start > _SECTION_CHARACTERS:
        end = text.rfind("\n", start, start + _SECTION_CHARACTERS) + 1 or start + _SECTION_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


def _piece(row: int, token_ids: NDArray[np.int32]) -> Piece:
    return Piece(row, token_ids, np.arange(len(token_ids)) > 0)
