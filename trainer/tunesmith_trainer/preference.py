"""Owns preference tuning (DPO, Rafailov et al. 2023): its loss over pairs, and how pairs are measured.
Must not know optimizers, files or the control plane."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tunesmith_trainer.device_copies import to_device
from tunesmith_trainer.evaluation import RowScore, measure_packs
from tunesmith_trainer.example import Example
from tunesmith_trainer.head import HeadGradients, logits_of, parts, slope_of
from tunesmith_trainer.objectives import Scored, logit_cap, pack_for, states_at_labels
from tunesmith_trainer.packing import Pack

_PAIRS_AT_ONCE = 256  # packed together without gradients: packing all pairs of a large file would take too long


@dataclass(frozen=True, slots=True)
class PairScore(RowScore):
    """One pair: its loss, and one hit if the preferred answer gained more over the base than the other.

    `margin` is by how many nats the model itself holds the preferred answer likelier than the other.
    """

    margin: float

    @property
    def exact(self) -> bool:
        """Whether the model itself holds the preferred answer likelier."""
        return self.margin > 0


class PreferenceObjective:
    """The mean over pairs of -log sigmoid(beta · gain).

    With the log-probabilities of whole answers, the gain is how much further the preferred answer is ahead of the
    other under the model than under the base. The base is asked once, before anything is learnt; a resumed run asks
    it again before it restores its weights, which gives the same numbers. In bfloat16 a document's numbers depend on
    what it is packed with, so that `evaluate` packs the same examples as `observe_base` did in the same way.
    """

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._base_margins: dict[bytes, float] = {}

    def observe_base(
        self, model: nn.Module, examples: Sequence[Example], pack_tokens: int, after_pack: Callable[[], None]
    ) -> None:
        """Keeps by how much the base holds each preferred answer likelier. Examples are pairs, here as below."""
        for pair, margin in _margins(model, examples, pack_tokens, after_pack):
            self._base_margins[_content(examples[pair])] = margin

    def count(self, batch: Pack) -> int:
        """Pairs."""
        return len(batch.members) // 2

    def score(self, model: nn.Module, batch: Pack, examples: Sequence[Example]) -> Scored:
        """See Objective. A hit is a pair with a gain above 0."""
        margins = _margins_of_pack(model, batch)
        base = [self._base_margins[_content(examples[member])] for member in batch.members[::2]]
        gains = margins - to_device(torch.tensor(base), margins.device)
        losses = functional.softplus(-self._beta * gains)
        return Scored(losses.sum(), losses.detach(), gains.detach() > 0)

    def evaluate(
        self, model: nn.Module, examples: Sequence[Example], pack_tokens: int, after_pack: Callable[[], None]
    ) -> list[RowScore]:
        """See Objective."""
        scores: dict[int, RowScore] = {}
        for pair, margin in _margins(model, examples, pack_tokens, after_pack):
            gain = margin - self._base_margins[_content(examples[pair])]
            loss = float(functional.softplus(torch.tensor(-self._beta * gain)))
            scores[pair] = PairScore(examples[pair].row, loss, int(gain > 0), 1, margin)
        return [scores[index] for index in range(len(examples))]


def _margins(
    model: nn.Module, examples: Sequence[Example], pack_tokens: int, after_pack: Callable[[], None]
) -> Iterator[tuple[int, float]]:
    """The index of each pair with its margin under the model, pack by pack."""

    def margins_of(batch: Pack) -> list[float]:
        margins: list[float] = _margins_of_pack(model, batch).tolist()
        after_pack()
        return margins

    for start in range(0, len(examples), _PAIRS_AT_ONCE):
        packs = pack_for(model, examples[start : start + _PAIRS_AT_ONCE], pack_tokens, apart=False)
        for batch, margins in zip(packs, measure_packs(model, packs, margins_of), strict=True):
            yield from zip((start + member for member in batch.members[::2]), margins, strict=True)


def _margins_of_pack(model: nn.Module, batch: Pack) -> Tensor:
    """(pairs,) float32: log-probability of the preferred answer less that of the other, differentiable."""
    logprobs: Tensor = _LabelLogprobs.apply(*states_at_labels(model, batch), logit_cap(model))  # type: ignore[no-untyped-call]  # torch
    answers = torch.stack([answer.sum() for answer in torch.split(logprobs, list(batch.label_counts))])
    return answers[0::2] - answers[1::2]


def _content(example: Example) -> bytes:
    digest = blake2b(repr(example.documents).encode(), digest_size=16)
    digest.update(example.token_ids.tobytes())
    digest.update(example.labelled.tobytes())
    return digest.digest()


class _LabelLogprobs(torch.autograd.Function):
    """Log-probabilities of labels. What an answer weighs is known after the forward pass only, so that the backward
    pass makes the logits again: they are never kept, and a pass without gradients costs nothing more."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, cap: float | None) -> Tensor:
        logprobs = hidden.new_empty(targets.shape, dtype=torch.float32)
        normalizers = torch.empty_like(logprobs)
        for part in parts(hidden):
            logits = logits_of(hidden[part], head, cap)
            normalizers[part] = logits.logsumexp(1)
            logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - normalizers[part]
        ctx.cap = cap
        ctx.save_for_backward(hidden, head, targets, normalizers)
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, head, targets, normalizers = ctx.saved_tensors
        gradients = HeadGradients(hidden, head, ctx.needs_input_grad[:2])
        for part in parts(hidden):
            logits = logits_of(hidden[part], head, ctx.cap)
            slope = slope_of(logits, ctx.cap)
            grad_logits = logits.sub_(normalizers[part, None]).exp_().mul_(-grad[part, None])
            grad_logits.scatter_add_(1, targets[part, None], grad[part, None])
            gradients.add(part, grad_logits, slope)
            del logits, grad_logits, slope  # or they would lie beside the next part's
        return gradients.hidden, None if gradients.head is None else gradients.head.to(head.dtype), None, None
