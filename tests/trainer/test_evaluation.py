"""Means over rows, and what changed between two measurements."""

import math

import pytest

from tunesmith_trainer.evaluation import Flip, RowScore, Score, flips, summarise


def test_means_are_weighted_by_labelled_tokens_and_exact_match_by_rows() -> None:
    score = summarise([RowScore(1, 1.0, 3, 3), RowScore(2, 3.0, 0, 1)])

    assert score == Score(loss=1.5, token_accuracy=0.75, exact_match=0.5)
    assert score.perplexity == pytest.approx(math.exp(1.5))


def test_the_perplexity_of_any_loss_is_a_number() -> None:
    assert math.isfinite(Score(1e6, 0.0, 0.0).perplexity)


def test_flips_name_the_rows_that_only_one_model_answers() -> None:
    base = [RowScore(row, 0.5, hits, 2) for row, hits in ((3, 1), (5, 2), (7, 2), (9, 0))]
    tuned = [RowScore(row, 0.5, hits, 2) for row, hits in ((3, 2), (5, 1), (7, 2), (9, 1))]

    found = flips(base, tuned)

    assert found == [Flip(3, right=True), Flip(5, right=False)]
