"""The metrics against values worked out by hand, and their behaviour at the edges."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith_server.graders.similarity import MAX_METEOR_WORDS, METRICS, similarity
from tunesmith_server.graders.templates import MAX_RENDERED, TextTooLongError

TEXT, REFERENCE = "the cat sat on the mat", "the cat is on the mat"


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("rouge_1", 2 * 5 / 12),
        ("rouge_2", 2 * 3 / 10),
        ("rouge_3", 2 * 1 / 8),
        ("rouge_4", 0.0),
        ("rouge_5", 0.0),
        ("rouge_l", 2 * 5 / 12),
        # 1 - (edits without replacement) / (both lengths): s, a, t out, i, s in; one s stays.
        ("fuzzy_match", 1 - 3 / 43),
        # precisions 5/6, 3/5, 1/4, and 0/3 smoothed to 1/6 (one zero count: 1 / (2^1 * 3)).
        ("bleu", (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25),
        # n-grams up to 4: 5 + 3 + 1 + 0 of 6 + 5 + 4 + 3.
        ("gleu", 9 / 18),
        # five of six words in two runs: harmonic mean 5/6, penalty 0.5 * (2/5)^3.
        ("meteor", 5 / 6 * (1 - 0.5 * (2 / 5) ** 3)),
    ],
)
def test_values(metric: str, value: float) -> None:
    assert similarity(metric, TEXT, REFERENCE) == pytest.approx(value)


def test_meteor_takes_words_of_one_stem_for_equal() -> None:
    assert similarity("meteor", "running dogs", "run dog") > 0.9


@pytest.mark.parametrize("metric", METRICS)
def test_the_same_text_is_one_and_nothing_in_common_is_zero(metric: str) -> None:
    assert similarity(metric, "ja", "ja") == 1.0
    assert similarity(metric, "", "") == 1.0
    assert similarity(metric, "abc", "") == 0.0
    assert similarity(metric, "", "abc") == 0.0
    assert similarity(metric, "один", "three") == 0.0


@pytest.mark.parametrize("metric", ["rouge_1", "bleu", "gleu"])
def test_words_of_every_script_count(metric: str) -> None:
    assert similarity(metric, "один два три четыре", "один два три") > 0.3


@given(st.sampled_from(sorted(METRICS)), st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=80, deadline=None)
def test_any_two_texts_have_a_similarity(metric: str, text: str, reference: str) -> None:
    assert 0.0 <= similarity(metric, text, reference) <= 1.0


@pytest.mark.parametrize("metric", sorted(set(METRICS) - {"meteor"}))
def test_the_longest_texts_are_graded(metric: str) -> None:
    text = ("ab " * MAX_RENDERED)[:MAX_RENDERED]
    assert 0.0 <= similarity(metric, text, text[::-1]) <= 1.0


def test_meteor_has_a_bound_of_its_own() -> None:
    with pytest.raises(TextTooLongError):
        similarity("meteor", "a " * (MAX_METEOR_WORDS + 1), "b")


def test_the_servers_start_does_not_wait_for_the_libraries() -> None:
    code = "import sys, tunesmith_server.graders.service; print({'nltk', 'rapidfuzz'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
