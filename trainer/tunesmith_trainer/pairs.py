"""Owns pairs of answers to one prompt, as examples of two documents.
Must not know losses, packing or the control plane."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tunesmith_trainer.data import Message, Row
from tunesmith_trainer.errors import Problem
from tunesmith_trainer.example import Example, joined
from tunesmith_trainer.rendering import Renderer


def render_pairs(renderer: Renderer, rows: Sequence[Row]) -> list[list[Example] | Problem]:
    """For every row an example of two documents, the prompt with each of its answers, the preferred one first.

    Where a row cannot be rendered, its problem stands instead.
    """
    rendered = renderer.render_all([one for row in rows for one in conversations(row)])
    return [
        _paired(preferred, other, row)
        for row, preferred, other in zip(rows, rendered[0::2], rendered[1::2], strict=True)
    ]


def conversations(row: Row) -> list[Row]:
    """The conversations that a row holds: one, or that with the preferred answer and that with the other."""
    if row.other_answer is None:
        return [row]
    other: tuple[Message, ...] = (*row.messages[:-1], row.other_answer)
    return [replace(row, other_answer=None), replace(row, messages=other, other_answer=None)]


def _paired(preferred: Example | Problem, other: Example | Problem, row: Row) -> list[Example] | Problem:
    if isinstance(preferred, Problem):
        return preferred
    if isinstance(other, Problem):
        return other
    if np.array_equal(preferred.token_ids, other.token_ids):
        message = f"Row {row.number} has the same answer twice, so that nothing is preferred."
        return Problem("identical_outputs", message, row.param, row.number)
    return [joined([preferred, other])]
