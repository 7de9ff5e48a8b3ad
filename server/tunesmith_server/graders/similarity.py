"""Owns the text-similarity metrics: numbers from 0 to 1, the same text giving the highest.

It must not know graders. Texts have the bounded length of templates.py; libraries are imported at first use, because
the server starts far more often than it grades.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial

from tunesmith_server.graders.templates import TextTooLongError

MAX_METEOR_WORDS = 2000
"""Its alignment compares each word with each."""

_WORD = re.compile(r"\w+|[^\w\s]")
_PLAIN_WORD = re.compile(r"\w+")


def similarity(metric: str, text: str, reference: str) -> float:
    """How close `text` is to `reference`; raises TextTooLongError."""
    if text == reference:
        return 1.0
    return min(1.0, max(0.0, METRICS[metric](text, reference)))


def _fuzzy_match(text: str, reference: str) -> float:
    from rapidfuzz import fuzz

    return fuzz.ratio(text, reference) / 100


def _bleu(text: str, reference: str) -> float:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    words, wanted = _words(text), _words(reference)
    if not words or not wanted:
        return 0.0
    # Short answers have no n-grams of four: without these two they would all count as wrong.
    smoothing = SmoothingFunction().method3
    return float(sentence_bleu([wanted], words, smoothing_function=smoothing, auto_reweigh=True))


def _gleu(text: str, reference: str) -> float:
    from nltk.translate.gleu_score import sentence_gleu

    words, wanted = _words(text), _words(reference)
    return float(sentence_gleu([wanted], words)) if words and wanted else 0.0


def _meteor(text: str, reference: str) -> float:
    from nltk.translate.meteor_score import single_meteor_score

    words, wanted = _words(text), _words(reference)
    if len(words) > MAX_METEOR_WORDS or len(wanted) > MAX_METEOR_WORDS:
        raise TextTooLongError
    return float(single_meteor_score(wanted, words, wordnet=_NoSynonyms()))


class _NoSynonyms:
    """Stands for WordNet, which would have to be downloaded: words match when they or their stems are equal."""

    def synsets(self, _word: str) -> list[object]:
        return []


def _rouge_n(size: int, text: str, reference: str) -> float:
    found, wanted = _grams(text, size), _grams(reference, size)
    return _f_measure((found & wanted).total(), found.total(), wanted.total())


def _rouge_l(text: str, reference: str) -> float:
    from rapidfuzz.distance import LCSseq

    words, wanted = _plain_words(text), _plain_words(reference)
    return _f_measure(LCSseq.similarity(words, wanted), len(words), len(wanted))


def _grams(text: str, size: int) -> Counter[tuple[str, ...]]:
    words = _plain_words(text)
    return Counter(zip(*(words[start:] for start in range(size)), strict=False))


def _f_measure(common: int, found: int, wanted: int) -> float:
    return 2 * common / (found + wanted) if common else 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _plain_words(text: str) -> list[str]:
    return _PLAIN_WORD.findall(text.lower())


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": _fuzzy_match,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    **{f"rouge_{size}": partial(_rouge_n, size) for size in range(1, 6)},
    "rouge_l": _rouge_l,
}
