"""Owns measuring a model on rows: loss, token accuracy, exact match, and what changed between two measurements.
Must not know optimizers, files' destinations or the control plane."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from tunesmith_trainer import distributed
from tunesmith_trainer.example import Example
from tunesmith_trainer.objectives import pack_for, score, score_nothing
from tunesmith_trainer.packing import Pack

_Found = TypeVar("_Found")
_LARGEST_EXPONENT = 700.0  # exp of more is no float


@dataclass(frozen=True, slots=True)
class RowScore:
    """One row: its mean loss in nats per labelled token, hits among `labels` tokens, and whether all were hits.

    If at every labelled position, the stop token included, the most likely token is the label, then the greedy answer
    equals the label, and the other way round: exact match needs no generation.
    """

    row: int
    loss: float
    hits: int
    labels: int

    @property
    def exact(self) -> bool:
        """Whether the greedy answer equals the label."""
        return self.hits == self.labels


@dataclass(frozen=True, slots=True)
class Score:
    """Means over rows: `loss` and `token_accuracy` per labelled token, `exact_match` per row."""

    loss: float
    token_accuracy: float
    exact_match: float

    @property
    def perplexity(self) -> float:
        """exp of the loss: among how many equally likely tokens the model seems to choose."""
        return math.exp(min(self.loss, _LARGEST_EXPONENT))


@dataclass(frozen=True, slots=True)
class Measured:
    """What the model of one step scored: on the evaluation rows, and on the guard set's questions."""

    step: int
    rows: list[RowScore]
    guard: list[RowScore]


@dataclass(frozen=True, slots=True)
class Flip:
    """A row that only one of two models answers exactly; `right` tells whether the second one does."""

    row: int
    right: bool


def evaluate(
    model: nn.Module, examples: Sequence[Example], pack_tokens: int, after_pack: Callable[[], None]
) -> list[RowScore]:
    """Scores every example, in order. `after_pack` is called between packs and may raise to stop.

    Each pack is scored by one rank; all ranks must call it, and all get everything.
    """

    def sums_of(batch: Pack) -> list[tuple[int, float, int, int]]:
        """For each document the index of its example, the sum of its losses, its hits, and its labels."""
        scored = score(model, batch)
        parts = zip(
            batch.members,
            torch.split(scored.losses.cpu(), list(batch.label_counts)),
            torch.split(scored.hits.cpu(), list(batch.label_counts)),
            strict=True,
        )
        after_pack()
        return [(member, float(losses.sum()), int(hits.sum()), len(losses)) for member, losses, hits in parts]

    losses, hits, labels = [0.0] * len(examples), [0] * len(examples), [0] * len(examples)
    for of_pack in measure_packs(model, pack_for(model, examples, pack_tokens, apart=True), sums_of):
        for index, of_losses, of_hits, count in of_pack:
            losses[index] += of_losses
            hits[index] += of_hits
            labels[index] += count
    return [
        RowScore(one.row, losses[index] / labels[index], hits[index], labels[index])
        for index, one in enumerate(examples)
    ]


def measure_packs(model: nn.Module, packs: Sequence[Pack], measure: Callable[[Pack], _Found]) -> list[_Found]:
    """What is measured on each pack, in order, without gradients; each by one rank, for all of them."""
    # Not inference mode: what a sharded model has gathered in it could not be trained with later.
    with torch.no_grad():
        sizes = [len(batch.token_ids) for batch in packs]
        return distributed.share_out(packs, sizes, measure, lambda: score_nothing(model))


def summarise(scores: Sequence[RowScore]) -> Score:
    """Means of a non-empty list of row scores."""
    labels = sum(score.labels for score in scores)
    return Score(
        loss=sum(score.loss * score.labels for score in scores) / labels,
        token_accuracy=sum(score.hits for score in scores) / labels,
        exact_match=sum(score.exact for score in scores) / len(scores),
    )


def flips(base: Sequence[RowScore], tuned: Sequence[RowScore]) -> list[Flip]:
    """The rows that became right or wrong, in order."""
    pairs = zip(base, tuned, strict=True)
    return [Flip(after.row, right=after.exact) for before, after in pairs if before.exact != after.exact]
