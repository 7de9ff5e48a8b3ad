"""Exact match counts what it says, and rows keep their order under concurrency."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.scoring import exact_match, is_exact, load_rows

TICKET = '{"intent":"refund","order":"A-1042","product":"kettle","urgent":true}'


@pytest.mark.parametrize(
    ("answer", "exact"),
    [
        (TICKET, True),
        (f"\n {TICKET} ", True),
        (TICKET.replace(",", ", "), False),
        (TICKET.replace("A-1042", "a-1042"), False),
        (TICKET + "}", False),
        (TICKET[:-1], False),
        ("", False),
    ],
)
def test_only_white_space_around_the_answer_is_forgiven(answer: str, exact: bool) -> None:
    assert is_exact(answer, TICKET) is exact


def test_exact_match_is_a_share_of_the_rows() -> None:
    assert exact_match([TICKET, "no", TICKET, "no"], [TICKET] * 4) == 0.5


def test_a_missing_answer_is_an_error_and_not_a_miss() -> None:
    with pytest.raises(ValueError, match="longer"):
        exact_match([TICKET], [TICKET, TICKET])
    with pytest.raises(ValueError, match="no rows"):
        exact_match([], [])


def test_rows_end_with_the_expected_answer(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "where is it\u2028?"}, {"role": "assistant", "content": TICKET}]
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps({"messages": turns}, ensure_ascii=False) + "\n") * 3, encoding="utf-8")
    rows = load_rows(path, limit=2)
    assert [(row.message, row.expected) for row in rows] == [("where is it\u2028?", TICKET)] * 2
    assert rows[0].prompt == turns[:1]
