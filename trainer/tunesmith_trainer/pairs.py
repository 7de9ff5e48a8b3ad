"""Owns pairs of answers to one prompt, as examples of two documents.
Must not know losses, packing or the control plane."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunesmith_trainer.data import Message, Row
from tunesmith_trainer.errors import Problem
from tunesmith_trainer.rendering import Example, Renderer


@dataclass(frozen=True, slots=True)
class Pair(Example):
    """A prompt with the preferred answer, `split` tokens, and then once more with the other; both answers labelled."""

    split: int

    @property
    def documents(self) -> tuple[int, ...]:
        """The two."""
        return self.split, len(self.token_ids) - self.split

    def cut(self, tokens: int) -> "Pair":
        """The pair without what comes after the first `tokens` tokens of a document."""
        lengths = self.documents
        keep = np.concatenate([np.arange(length) < tokens for length in lengths])
        return Pair(self.row, self.token_ids[keep], self.labelled[keep], min(tokens, lengths[0]))


def render_pairs(renderer: Renderer, rows: Sequence[Row]) -> list[list[Example] | Problem]:
    """A pair for every row; where a row cannot be rendered, its problem stands instead."""
    rendered = renderer.render_all([one for row in rows for one in conversations(row)])
    return [
        _joined(preferred, other, row)
        for row, preferred, other in zip(rows, rendered[0::2], rendered[1::2], strict=True)
    ]


def conversations(row: Row) -> list[Row]:
    """The conversations that a row holds: one, or that with the preferred answer and that with the other."""
    if row.other_answer is None:
        return [row]
    other: tuple[Message, ...] = (*row.messages[:-1], row.other_answer)
    return [replace(row, other_answer=None), replace(row, messages=other, other_answer=None)]


def _joined(preferred: Example | Problem, other: Example | Problem, row: Row) -> list[Example] | Problem:
    if isinstance(preferred, Problem):
        return preferred
    if isinstance(other, Problem):
        return other
    if np.array_equal(preferred.token_ids, other.token_ids):
        message = f"Row {row.number} has the same answer twice, so that nothing is preferred."
        return Problem("identical_outputs", message, row.param, row.number)
    return [
        Pair(
            row.number,
            np.concatenate([preferred.token_ids, other.token_ids]),
            np.concatenate([preferred.labelled, other.labelled]),
            len(preferred.token_ids),
        )
    ]
