"""Raw text: nothing is lost, and every token but the first is learnt once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import tiny_model
from tunesmith_trainer import texts
from tunesmith_trainer.data import Message, Row
from tunesmith_trainer.errors import Problem
from tunesmith_trainer.example import Example
from tunesmith_trainer.texts import render_text

TOKENIZER = tiny_model.tokenizer()


def pieces(text: str, limit: int) -> list[Example]:
    made = render_text(TOKENIZER, Row(5, "training_file", (Message("text", text, 1, {}),), None), limit)
    assert isinstance(made, list)
    return made


def learnt(examples: list[Example]) -> str:
    return str(TOKENIZER.decode(np.concatenate([one.token_ids[one.labelled] for one in examples])))


def test_a_short_text_is_one_piece_and_its_end_is_learnt() -> None:
    (one,) = pieces("Once upon", 100)

    assert TOKENIZER.decode(one.token_ids) == "Once upon<|im_end|>"
    assert learnt([one]) == "nce upon<|im_end|>"
    assert one.row == 5


@given(st.text("abc\n ", min_size=1, max_size=60), st.integers(2, 20))
def test_pieces_hold_every_token_and_teach_each_but_the_first_once(text: str, limit: int) -> None:
    made = pieces(text, limit)

    assert all(2 <= len(one.token_ids) <= limit for one in made)
    assert learnt(made) == f"{text}<|im_end|>"[1:]


def test_a_long_text_is_tokenised_line_by_line_with_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"line {index}\n" for index in range(50)) + "x" * 40
    (whole,) = pieces(text, 10_000)
    monkeypatch.setattr(texts, "_SECTION_CHARACTERS", 25)
    (parts,) = pieces(text, 10_000)

    assert np.array_equal(whole.token_ids, parts.token_ids)


def test_a_text_with_half_a_character_is_refused_with_its_row() -> None:
    refused = render_text(TOKENIZER, Row(5, "training_file", (Message("text", "a \ud83d", 1, {}),), None), 100)

    assert isinstance(refused, Problem)
    assert (refused.code, refused.row) == ("invalid_file_format", 5)


def test_a_text_begins_as_its_tokenizer_begins_texts() -> None:
    tokenizer = tiny_model.tokenizer(begins=True)
    made = render_text(tokenizer, Row(1, "training_file", (Message("text", "ab", 1, {}),), None), 100)

    assert isinstance(made, list)
    (one,) = made
    assert tokenizer.decode(one.token_ids) == "<|im_start|>ab<|im_end|>"
    assert one.labelled.tolist() == [False, True, True, True]


def test_a_served_model_can_be_asked_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    (long,), (short,) = pieces("a" * 80, 100), pieces("a", 100)

    assert (len(long.prompt_token_ids), len(short.prompt_token_ids)) == (16, 1)
