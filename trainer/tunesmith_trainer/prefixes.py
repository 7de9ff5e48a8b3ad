"""Owns what documents begin with in common, so that a pack computes it once for all of them.
Must not know models, budgets or where documents come from. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4  # tokens: a call of the kernel more takes as long as a token or two in all layers


@dataclass(frozen=True, slots=True)
class Document:
    """Tokens that are seen by each other only: `token_ids` int32 (T,) and `labelled` bool (T,), its first False."""

    token_ids: NDArray[np.int32]
    labelled: NDArray[np.bool_]

    @property
    def shareable(self) -> int:
        """How many of its first tokens others may have too: none from which a label is predicted, and not all."""
        (label_at,) = np.nonzero(self.labelled)
        return max(int(label_at[0]) if len(label_at) else len(self.token_ids), 1) - 1


class Prefixes:
    """Documents in an order in which those that begin alike are neighbours: `places` are each one's place in it.

    Those of more than `share_up_to` tokens have nothing in common; with 0 all stay in the order that they are given in.
    """

    def __init__(self, documents: Sequence[Document], share_up_to: float) -> None:
        order = list(range(len(documents)))
        self._common = [0] * len(documents)
        if share_up_to > 0:
            keys = [document.token_ids.astype(">i4").tobytes() for document in documents]  # sorts by token
            order.sort(key=lambda index: (keys[index], index))
            pairs = ((documents[one], documents[other]) for one, other in pairwise(order))
            self._common[1:] = [_in_common(one, other, share_up_to) for one, other in pairs]
        self.places = [0] * len(documents)
        for place, index in enumerate(order):
            self.places[index] = place

    def shared(self, one: int, other: int) -> int:
        """With how many tokens, of which nothing is predicted, the documents at two places begin alike."""
        first, last = sorted((one, other))
        return min(self._common[first + 1 : last + 1])


def _in_common(one: Document, other: Document, share_up_to: float) -> int:
    if max(len(one.token_ids), len(other.token_ids)) > share_up_to:
        return 0
    most = min(one.shareable, other.shareable)
    differs = one.token_ids[:most] != other.token_ids[:most]
    return (int(differs.argmax()) if differs.any() else most) // _BLOCK * _BLOCK
