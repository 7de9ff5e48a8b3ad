"""Asks a served model for held-out rows and counts exact matches.

It knows the chat endpoint only: nothing of jobs, processes or pages.
"""

import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tunesmith import Tunesmith

MAX_ANSWER_TOKENS = 40  # the longest ticket of the example data takes 29


@dataclass(frozen=True)
class Row:
    """One held-out row: the conversation so far and the answer that the data holds for it."""

    prompt: list[dict[str, str]]
    expected: str

    @property
    def message(self) -> str:
        """What the customer wrote."""
        return self.prompt[-1]["content"]


@dataclass(frozen=True)
class Comparison:
    """One row with what both models answered."""

    message: str
    expected: str
    base: str
    tuned: str


def load_rows(path: Path, limit: int) -> list[Row]:
    """The first `limit` rows of a chat JSONL file whose last message is the expected answer."""
    with path.open(encoding="utf-8") as lines:
        conversations = [json.loads(line)["messages"] for line in itertools.islice(lines, limit)]
    return [Row(prompt=messages[:-1], expected=messages[-1]["content"]) for messages in conversations]


def ask(client: Tunesmith, model: str, rows: Sequence[Row], threads: int) -> list[str]:
    """The model's greedy answers, in the order of the rows, with `threads` requests under way at a time."""

    def answer(row: Row) -> str:
        completion = client.chat.completions.create(
            model=model, messages=row.prompt, temperature=0, max_tokens=MAX_ANSWER_TOKENS
        )
        return completion.choices[0].message.content or ""

    with ThreadPoolExecutor(max_workers=threads) as pool:
        return list(pool.map(answer, rows))


def is_exact(answer: str, expected: str) -> bool:
    """Character for character, but for white space around it. Another order of keys or an added space is a miss."""
    return answer.strip() == expected.strip()


def exact_match(answers: Sequence[str], expected: Sequence[str]) -> float:
    """The share of answers that are exact, 0 to 1. Raises ValueError if the lengths differ or there are none."""
    if not expected:
        raise ValueError("no rows to score")
    return sum(is_exact(a, e) for a, e in zip(answers, expected, strict=True)) / len(expected)
