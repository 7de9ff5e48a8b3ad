"""Owns putting the rows of one optimizer step into micro-batches of a bounded number of tokens.
Must not know models, tokenizers or where rows come from."""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tunesmith_trainer.example import Example
from tunesmith_trainer.prefixes import Document, Prefixes


@dataclass(frozen=True, slots=True)
class Pack:
    """One micro-batch: documents laid end to end, what several begin with only once.

    `token_ids` and `positions` are int64 of shape (T,), positions count from 0 in each document. The tokens lie in
    segments of `lengths` tokens. A document is one segment, or the end of one that begins with `shared` tokens: of
    these (start, end, last) says that the tokens from `end` to before `last` continue those from `start` to `end`.

    The model's output at `label_positions[i]` is to predict `targets[i]`. Of each document, in the order of their
    examples: `label_counts` are its labelled tokens, `members` the index of the example that it is of. `tokens` counts
    all documents' tokens, each as a whole.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    lengths: tuple[int, ...]
    shared: tuple[tuple[int, int, int], ...]
    label_positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    members: tuple[int, ...]
    label_counts: tuple[int, ...]
    tokens: int


def pack(examples: Sequence[Example], budget: int, *, share_up_to: float = 0, apart: bool = False) -> list[Pack]:
    """Packs whole examples, first fit by decreasing length, into as few packs of at most `budget` tokens as that finds.

    An example longer than the budget travels alone. `apart`: its documents may be in different packs. What documents of
    at most `share_up_to` tokens begin with in common is in a pack once, and an example goes where it shares most. The
    result depends on nothing but the arguments.
    """
    documents = [_documents_of(example) for example in examples]
    prefixes = Prefixes([one for parts in documents for one in parts], share_up_to)
    places = iter(prefixes.places)
    bins: list[_Bin] = []
    members = [
        _Member(index, together, [next(places) for _ in together])
        for index, parts in enumerate(documents)
        for together in ([[part] for part in parts] if apart else [parts])
    ]
    for member in sorted(members, key=lambda one: -one.tokens):  # which keeps the order of equals
        added = [one.would_add(member) for one in bins]
        fitting = [index for index, one in enumerate(bins) if one.tokens + added[index] <= budget]
        if fitting:
            bins[min(fitting, key=lambda index: (added[index], index))].add(member)
        else:
            bins.append(_Bin(prefixes))
            bins[-1].add(member)
    return [one.lay_out() for one in bins]


@dataclass(frozen=True, slots=True)
class _Member:
    """Documents of an example that travel together, with their places among all that are packed."""

    index: int
    documents: list[Document]
    places: list[int]

    @property
    def tokens(self) -> int:
        """Of all of them."""
        return sum(len(document.token_ids) for document in self.documents)


class _Bin:
    """What is to be one pack. `tokens` are those that it has so far, shared ones counted once."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self._members: list[_Member] = []
        self._places: list[int] = []
        self.tokens = 0

    def would_add(self, member: _Member) -> int:
        """By how many tokens the pack would grow."""
        places = self._places if len(member.places) == 1 else self._places.copy()
        added = 0
        for place, document in zip(member.places, member.documents, strict=True):
            at = bisect(places, place)
            beside = places[max(at - 1, 0) : at + 1]
            added += len(document.token_ids) - max((self._prefixes.shared(place, one) for one in beside), default=0)
            if places is not self._places:
                places.insert(at, place)
        return added

    def add(self, member: _Member) -> None:
        """Puts an example into it."""
        self.tokens += self.would_add(member)
        self._members.append(member)
        self._places = sorted([*self._places, *member.places])

    def lay_out(self) -> Pack:
        """The pack."""
        members = sorted(self._members, key=lambda member: member.index)
        documents = [one for member in members for one in member.documents]
        layout = _Layout()
        places = [place for member in members for place in member.places]
        in_order = sorted(range(len(places)), key=lambda index: places[index])
        common = [self._prefixes.shared(places[one], places[other]) for one, other in pairwise(in_order)]
        layout.lay([documents[index] for index in in_order], [0, *common])
        shifts = dict(zip(in_order, layout.shifts, strict=True))
        label_at = [np.nonzero(document.labelled)[0] for document in documents]
        return Pack(
            token_ids=np.concatenate(layout.token_ids).astype(np.int64),
            positions=np.concatenate(layout.positions),
            lengths=tuple(map(len, layout.positions)),
            shared=tuple(layout.shared),
            # A labelled token is predicted from the one before it; a document's first token is never labelled.
            label_positions=np.concatenate([at - 1 + shifts[index] for index, at in enumerate(label_at)]),
            targets=np.concatenate([one.token_ids[one.labelled] for one in documents]).astype(np.int64),
            members=tuple(member.index for member in members for _ in member.documents),
            label_counts=tuple(map(len, label_at)),
            tokens=sum(len(document.token_ids) for document in documents),
        )


@dataclass(frozen=True, slots=True)
class _Branch:
    """Documents from `first` to before `last`, all of which go on alike after their first `depth` tokens."""

    first: int
    last: int
    depth: int


class _Layout:
    """Documents laid down as a tree: first what several begin with, then how each of them goes on.

    `shifts` say of each document how far its own tokens lie behind their positions.
    """

    def __init__(self) -> None:
        self.token_ids: list[NDArray[np.int32]] = []
        self.positions: list[NDArray[np.int64]] = []
        self.shared: list[tuple[int, int, int]] = []
        self.shifts: list[int] = []
        self._end = 0

    def lay(self, documents: Sequence[Document], common: Sequence[int]) -> None:
        """Lays documents that are in order: `common[i]` is with how many tokens document i begins as the one before it.

        What is still to be laid is on a stack, since conversations may share their beginnings in long chains.
        """
        ahead: list[_Branch | tuple[int, int]] = [*_branches(common, 0, len(documents), 0)]
        while ahead:
            branch = ahead.pop()
            if isinstance(branch, tuple):
                self.shared.append((*branch, self._end))
                continue
            first, depth = documents[branch.first], branch.depth
            if branch.last - branch.first == 1:
                self.shifts.append(self._end - depth)
                self._segment(first, depth, len(first.token_ids))
                continue
            further, start = min(common[branch.first + 1 : branch.last]), self._end
            self._segment(first, depth, further)
            ahead.append((start, self._end))
            ahead += _branches(common, branch.first, branch.last, further)

    def _segment(self, document: Document, start: int, end: int) -> None:
        self.token_ids.append(document.token_ids[start:end])
        self.positions.append(np.arange(start, end, dtype=np.int64))
        self._end += end - start


def _branches(common: Sequence[int], first: int, last: int, depth: int) -> list[_Branch]:
    """Where documents part that share their first `depth` tokens, the branch that comes first at the end."""
    starts = [index for index in range(first, last) if index == first or common[index] <= depth]
    return [_Branch(*ends, depth) for ends in pairwise([*starts, last])][::-1]


def _documents_of(example: Example) -> list[Document]:
    parts = (np.split(each, example.splits) for each in (example.token_ids, example.labelled))
    return [Document(token_ids, labelled) for token_ids, labelled in zip(*parts, strict=True)]
