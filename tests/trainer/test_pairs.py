"""Pairs: one prompt, two answers, each learnt whole."""

import numpy as np
import pytest

from tests.support import tiny_model
from tunesmith_trainer.data import Message, Row
from tunesmith_trainer.errors import Problem
from tunesmith_trainer.example import Example
from tunesmith_trainer.pairs import conversations, render_pairs
from tunesmith_trainer.rendering import Renderer


def preference_row(asked: str, preferred: str, other: str) -> Row:
    """A row as `read_rows` makes it."""
    answer, rejected = (Message("assistant", text, 1, {}) for text in (preferred, other))
    return Row(3, "training_file", (Message("user", asked, 0, {}), answer), None, rejected)


@pytest.fixture
def pair() -> Example:
    """The only pair of a good row."""
    (outcome,) = render_pairs(Renderer(tiny_model.tokenizer(), [2]), [preference_row("Colour?", "red", "a horse")])
    assert isinstance(outcome, list)
    (one,) = outcome
    return one


def test_both_answers_are_labelled_with_their_stop_tokens(pair: Example) -> None:
    tokenizer = tiny_model.tokenizer()
    ids, labels = (np.split(each, [pair.documents[0]]) for each in (pair.token_ids, pair.labelled))

    assert sum(pair.documents) == len(pair.token_ids)
    assert [tokenizer.decode(part[mask]) for part, mask in zip(ids, labels, strict=True)] == [
        "red<|im_end|>",
        "a horse<|im_end|>",
    ]
    assert tokenizer.decode(pair.prompt_token_ids).endswith("Colour?<|im_end|>\n<|im_start|>assistant\n")


def test_a_pair_is_cut_document_by_document(pair: Example) -> None:
    shortest = min(pair.documents)
    prompt = len(pair.prompt_token_ids)

    assert pair.cut(1000).documents == pair.documents
    assert pair.cut(shortest).documents == (shortest, shortest)
    assert pair.cut(prompt + 1).teaches
    assert not pair.cut(prompt).teaches


def test_the_same_answer_twice_prefers_nothing() -> None:
    (outcome,) = render_pairs(Renderer(tiny_model.tokenizer(), [2]), [preference_row("Colour?", "red", "red")])

    assert isinstance(outcome, Problem)
    assert (outcome.code, outcome.row) == ("identical_outputs", 3)


def test_the_conversations_of_a_row_end_with_its_answers() -> None:
    row = preference_row("Colour?", "red", "blue")
    first, second = conversations(row)

    assert [one.messages[-1].content for one in (first, second)] == ["red", "blue"]
    assert first.messages[0] == second.messages[0]
    assert conversations(first) == [first]
