"""The example data is reproducible, strict JSON, and its held-out rows are new to training."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from typing import Any

import pytest

from examples.make_support_tickets import FOLDER, MAX_WORDS, ROWS, Split, Ticket, make_rows

INTENTS = {"refund", "exchange", "cancel", "delivery", "damage", "address", "invoice"}


@pytest.fixture(scope="module")
def rows() -> dict[Split, list[dict[str, Any]]]:
    return make_rows()


@pytest.fixture(scope="module")
def phrases() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "support_ticket_phrases.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_committed_file_is_what_the_script_writes(split: Split, rows: dict[Split, list[dict[str, Any]]]) -> None:
    committed = (FOLDER / f"support_tickets_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(committed) == ROWS[split]
    assert [json.loads(line) for line in committed] == rows[split], "run make_support_tickets.py and commit its files"


def test_labels_are_strict_compact_json(rows: dict[Split, list[dict[str, Any]]]) -> None:
    for text in labels(rows, "train") + labels(rows, "heldout"):
        label = json.loads(text)
        assert Ticket(**label).to_json() == text
        assert label["intent"] in INTENTS
        assert label["order"] is None or re.fullmatch(r"[A-Z]-\d{4}", label["order"])
        assert type(label["urgent"]) is bool


def test_what_the_label_copies_stands_in_the_message(rows: dict[Split, list[dict[str, Any]]]) -> None:
    for row in rows["train"] + rows["heldout"]:
        message, label = row["messages"][1]["content"].lower(), json.loads(row["messages"][2]["content"])
        assert label["product"] in message
        assert label["order"] is None or re.search(r"{}\W?\W?_?{}".format(*label["order"].lower().split("-")), message)


def test_every_intent_is_equally_frequent(rows: dict[Split, list[dict[str, Any]]]) -> None:
    for split in ROWS:
        counts = [sum(json.loads(text)["intent"] == intent for text in labels(rows, split)) for intent in INTENTS]
        assert max(counts) - min(counts) <= 1


def test_messages_are_short_enough_to_train_on_two_cores(rows: dict[Split, list[dict[str, Any]]]) -> None:
    words = [len(message.split()) for message in messages(rows, "train")]
    assert max(words) <= MAX_WORDS
    assert statistics.mean(words) < 15


def test_heldout_rows_share_no_product_or_number_with_training(rows: dict[Split, list[dict[str, Any]]]) -> None:
    for field in ("product", "order"):
        trained = {json.loads(text)[field] for text in labels(rows, "train")} - {None}
        assert not trained & {json.loads(text)[field] for text in labels(rows, "heldout")}
    numbers = {split: set(re.findall(r"\d+", " ".join(messages(rows, split)))) for split in ROWS}
    assert not numbers["train"] & numbers["heldout"]


def test_no_phrase_is_listed_for_both_splits(phrases: dict[str, Any]) -> None:
    for family in families(phrases):
        assert not set(family["train"]) & set(family["heldout"])


def test_no_message_repeats_and_heldout_ones_resemble_no_trained_one(rows: dict[Split, list[dict[str, Any]]]) -> None:
    everything = [normal(message) for split in ROWS for message in messages(rows, split)]
    assert len(set(everything)) == len(everything)
    trained = [character_grams(message) for message in messages(rows, "train")]
    nearest = [highest_jaccard(character_grams(message), trained) for message in messages(rows, "heldout")]
    assert max(nearest) < 0.65
    assert sum(likeness < 0.35 for likeness in nearest) >= 0.9 * len(nearest)


def test_most_heldout_messages_have_a_construction_that_training_never_shows(
    rows: dict[Split, list[dict[str, Any]]],
) -> None:
    trained = {gram for message in messages(rows, "train") for gram in word_pairs(message)}
    new = [message for message in messages(rows, "heldout") if len(word_pairs(message) - trained) >= 2]
    assert len(new) >= 0.9 * ROWS["heldout"]


def messages(rows: dict[Split, list[dict[str, Any]]], split: Split) -> list[str]:
    return [row["messages"][1]["content"] for row in rows[split]]


def labels(rows: dict[Split, list[dict[str, Any]]], split: Split) -> list[str]:
    return [row["messages"][2]["content"] for row in rows[split]]


def families(node: dict[str, Any]) -> list[dict[str, list[str]]]:
    """All lists of phrases, at whatever depth."""
    if "train" in node:
        return [node]
    return [family for child in node.values() for family in families(child)]


def normal(message: str) -> str:
    return " ".join(re.findall(r"\w+", message.lower()))


def character_grams(message: str, size: int = 5) -> set[str]:
    text = normal(message)
    return {text[i : i + size] for i in range(len(text) - size + 1)}


def word_pairs(message: str) -> set[tuple[str, str]]:
    words = normal(message).split()
    return set(itertools.pairwise(words))


def highest_jaccard(grams: set[str], others: list[set[str]]) -> float:
    shared = [(len(grams & other), len(other)) for other in others]
    return max(common / (len(grams) + size - common) for common, size in shared)
