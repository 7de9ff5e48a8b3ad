"""Owns the arithmetic of the output head over labelled positions: logits in parts, and the gradients through them.
Must not know what is minimised."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tunesmith_trainer.products import exact_product, product


def rows_at_once(*, gpu: bool) -> int:
    """Labelled positions scored at once: bounds the logits' memory. A processor is busy with few."""
    return 2048 if gpu else 256


def parts(hidden: Tensor) -> Iterator[slice]:
    """Slices of at most `rows_at_once` that cover the rows of `hidden`."""
    step = rows_at_once(gpu=hidden.is_cuda)
    return (slice(start, start + step) for start in range(0, len(hidden), step))


def logits_of(hidden: Tensor, head: Tensor, cap: float | None) -> Tensor:
    """Logits (rows, vocabulary) float32 of states (rows, hidden) by the head (vocabulary, hidden).

    With a cap c they are c · tanh(z / c) of the plain product z.
    """
    logits = exact_product(hidden, head.t())
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def slope_of(logits: Tensor, cap: float | None) -> Tensor | None:
    """What `logits_of` multiplies gradients with because of the cap; None where there is none."""
    return None if cap is None else (logits / cap).square_().neg_().add_(1)


class HeadGradients:
    """Gradients of states and head, gathered part by part; None where nobody needs them.

    `hidden` is (rows, hidden) in the states' dtype, `head` (vocabulary, hidden) float32.
    """

    def __init__(self, hidden: Tensor, head: Tensor, needed: tuple[bool, bool]) -> None:
        self._states, self._weight = hidden, head
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.head = torch.zeros_like(head, dtype=torch.float32) if needed[1] else None

    @property
    def are_needed(self) -> bool:
        """Whether anybody needs one of them."""
        return self.hidden is not None or self.head is not None

    def add(self, part: slice, grad_logits: Tensor, slope: Tensor | None) -> None:
        """Takes a part's gradient (rows, vocabulary) float32 by its logits, which is changed in place."""
        if slope is not None:
            grad_logits *= slope
        cast_grad = grad_logits.to(self._weight.dtype)
        if self.hidden is not None:
            self.hidden[part] = product(cast_grad, self._weight)
        if self.head is not None:
            self.head += exact_product(cast_grad.t(), self._states[part])
