"""Owns putting the rows of one optimizer step into micro-batches of a bounded number of tokens.
Must not know models, tokenizers or where rows come from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith_trainer.rendering import Example


@dataclass(frozen=True, slots=True)
class Pack:
    """One micro-batch: documents laid end to end.

    `token_ids` and `positions` are int64 of shape (T,), positions restart at 0 in each document. The model's output at
    `label_positions[i]` is to predict `targets[i]`. Of each document, in the order in which they lie in the pack:
    `lengths` are its tokens, `label_counts` its labelled tokens, `members` the index of the example that it is of.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    lengths: tuple[int, ...]
    label_positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    members: tuple[int, ...]
    label_counts: tuple[int, ...]


def pack(examples: Sequence[Example], budget: int) -> list[Pack]:
    """Packs whole examples, first fit by decreasing length, into as few packs of at most `budget` tokens as that finds.

    An example longer than the budget travels alone. The result depends on nothing but the arguments.
    """
    order = sorted(range(len(examples)), key=lambda index: (-len(examples[index].token_ids), index))
    bins: list[list[int]] = []
    room: list[int] = []
    for index in order:
        length = len(examples[index].token_ids)
        place = next((i for i, free in enumerate(room) if free >= length), None)
        if place is None:
            bins.append([])
            room.append(budget)
            place = len(bins) - 1
        bins[place].append(index)
        room[place] -= length
    return [_lay_out(examples, sorted(members)) for members in bins]


def _lay_out(examples: Sequence[Example], members: list[int]) -> Pack:
    chosen = [examples[index] for index in members]
    lengths = tuple(length for example in chosen for length in example.documents)
    token_ids = np.concatenate([example.token_ids for example in chosen]).astype(np.int64)
    labelled = np.concatenate([example.labelled for example in chosen])
    (label_at,) = np.nonzero(labelled)
    return Pack(
        token_ids=token_ids,
        positions=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
        lengths=lengths,
        # A labelled token is predicted from the one before it; a document's first token is never labelled.
        label_positions=label_at - 1,
        targets=token_ids[label_at],
        members=tuple(
            member for member, example in zip(members, chosen, strict=True) for _ in range(len(example.documents))
        ),
        label_counts=tuple(int(part.sum()) for part in np.split(labelled, np.cumsum(lengths)[:-1])),
    )
