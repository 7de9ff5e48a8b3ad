"""Owns a rendered row: its tokens, which of them are learnt, and what of it is left when it is cut.
Must not know tokenizers, packing or models."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Example:
    """A rendered row: `token_ids` int32 (T,); `labelled` bool (T,) marks the tokens that are to be predicted.

    It may consist of several documents, which do not see each other: `splits` are where all but the first begin.
    """

    row: int
    token_ids: NDArray[np.int32]
    labelled: NDArray[np.bool_]
    splits: tuple[int, ...] = ()

    @property
    def documents(self) -> tuple[int, ...]:
        """Lengths of its documents. They sum to T."""
        bounds = (0, *self.splits, len(self.token_ids))
        return tuple(end - start for start, end in pairwise(bounds))

    @property
    def teaches(self) -> bool:
        """Whether there is something to learn in each of its documents."""
        return all(part.any() for part in np.split(self.labelled, self.splits))

    def taught(self) -> "Example":
        """The example without those of its documents in which there is nothing to learn."""
        parts = zip(np.split(self.token_ids, self.splits), np.split(self.labelled, self.splits), strict=True)
        kept = [Example(self.row, token_ids, labelled) for token_ids, labelled in parts if labelled.any()]
        return joined(kept) if kept else self

    @property
    def prompt_token_ids(self) -> list[int]:
        """What the model is given before the first token that it is to predict."""
        return [int(token) for token in self.token_ids[: int(self.labelled.argmax())]]

    def cut(self, tokens: int) -> "Example":
        """The example without what comes after the first `tokens` tokens of a document."""
        keep = np.concatenate([np.arange(length) < tokens for length in self.documents])
        kept = np.cumsum([min(tokens, length) for length in self.documents])
        splits = tuple(int(end) for end in kept[:-1])
        return replace(self, token_ids=self.token_ids[keep], labelled=self.labelled[keep], splits=splits)


def joined(examples: Sequence[Example]) -> Example:
    """One example with the documents of several of the same row."""
    if len(examples) == 1:
        return examples[0]
    lengths = [length for example in examples for length in example.documents]
    return Example(
        examples[0].row,
        np.concatenate([example.token_ids for example in examples]),
        np.concatenate([example.labelled for example in examples]),
        tuple(int(end) for end in np.cumsum(lengths)[:-1]),
    )


def labelled_tokens(examples: Iterable[Example]) -> int:
    """How many tokens of these rows are to be predicted."""
    return sum(int(example.labelled.sum()) for example in examples)
