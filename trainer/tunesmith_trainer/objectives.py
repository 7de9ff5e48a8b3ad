"""Owns what is minimised: the loss over labelled tokens, and the accuracies that come with it for free.
Must not know optimizers, files or the control plane."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith_trainer.attention import Documents
from tunesmith_trainer.base_shapes import share_up_to
from tunesmith_trainer.device_copies import to_device
from tunesmith_trainer.example import Example
from tunesmith_trainer.head import HeadGradients, logits_of, parts, slope_of
from tunesmith_trainer.packing import Pack, pack

_NONE = np.zeros(0, dtype=np.int64)
_ONE = np.zeros(1, dtype=np.int64)
_NOTHING = Pack(_ONE, _ONE, (1,), (), _NONE, _NONE, (0,), (0,), 1)


@dataclass(frozen=True, slots=True)
class Scored:
    """Per labelled token of a pack, on the device: `losses` (L,) float32 in nats, `hits` (L,) bool.

    `total` is the sum of the losses as a scalar that can be differentiated. An objective over something else than
    tokens has one loss and one hit for each of those.
    """

    total: Tensor
    losses: Tensor
    hits: Tensor


def pack_for(model: nn.Module, examples: Sequence[Example], budget: int, *, apart: bool) -> list[Pack]:
    """Packs of at most `budget` tokens, see `pack`, as the model's device computes them best."""
    is_cpu = next(model.parameters()).device.type == "cpu"  # the kernel for GPUs knows whole documents only
    return pack(examples, budget, share_up_to=share_up_to(model.config) if is_cpu else 0, apart=apart)


def score(model: nn.Module, batch: Pack) -> Scored:
    """Runs the model over a pack and scores its labelled tokens; the head sees only their positions."""
    hidden, head, targets = states_at_labels(model, batch)
    if not torch.is_grad_enabled():  # otherwise a trained head's gradient would be formed as well
        head = head.detach()
    total, losses, hits = _HeadLoss.apply(hidden, head, targets, logit_cap(model))  # type: ignore[no-untyped-call]  # torch
    return Scored(total, losses, hits)


def score_nothing(model: nn.Module) -> Tensor:
    """Runs the model over a token that nobody is to learn, as a rank without a pack of its own does among those with.

    Returns a zero that gives every trained parameter a gradient of zeros.
    """
    return score(model, _NOTHING).total


def states_at_labels(model: nn.Module, batch: Pack) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the decoder over a pack.

    Returns its states where a labelled token is predicted (L, hidden), the head's weight (vocabulary, hidden) and the
    labels (L,) int64, all on the device. Whoever makes logits of them has to bound these by `logit_cap`.
    """
    device = next(model.parameters()).device
    hidden = model.base_model(  # type: ignore[operator]  # transformers models have it: the decoder without the head
        input_ids=to_device(torch.from_numpy(batch.token_ids), device)[None],
        position_ids=to_device(torch.from_numpy(batch.positions), device)[None],
        use_cache=False,
        documents=Documents(batch.lengths, batch.shared, device),
    ).last_hidden_state[0]
    head: Tensor = model.get_output_embeddings().weight  # type: ignore[operator]  # as above
    at_labels = hidden.index_select(0, to_device(torch.from_numpy(batch.label_positions), device))
    return at_labels, head, to_device(torch.from_numpy(batch.targets), device)


def logit_cap(model: nn.Module) -> float | None:
    """What bounds the model's logits z, which become c · tanh(z / c); None where they are the head's plain product."""
    cap = getattr(model.config, "final_logit_softcapping", None)
    return None if cap is None else float(cap)


class _HeadLoss(torch.autograd.Function):
    """Sum of cross-entropies whose gradients are formed in the forward pass, so that logits are never kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        losses = hidden.new_empty(targets.shape, dtype=torch.float32)
        hits = torch.empty_like(targets, dtype=torch.bool)
        gradients = HeadGradients(hidden, head, ctx.needs_input_grad[:2])
        for part in parts(hidden):
            logits = logits_of(hidden[part], head, softcap)
            wanted = targets[part, None]
            highest, found = logits.max(1, keepdim=True)
            hits[part] = (found == wanted)[:, 0]
            slope = slope_of(logits, softcap) if gradients.are_needed else None
            # Softmax in place: the logits are by far the largest tensor of a step.
            logits -= highest
            of_wanted = logits.gather(1, wanted)
            sums = logits.exp_().sum(1, keepdim=True)
            losses[part] = (sums.log() - of_wanted)[:, 0]
            if not gradients.are_needed:
                continue
            grad_logits = logits.div_(sums)
            grad_logits.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=torch.float32))
            gradients.add(part, grad_logits, slope)
            del logits, grad_logits, slope  # or they would lie beside the next part's
        ctx.save_for_backward(gradients.hidden, gradients.head)
        ctx.mark_non_differentiable(losses, hits)
        return losses.sum(), losses, hits

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden.mul_(grad.to(grad_hidden.dtype)),
            None if grad_head is None else grad_head.mul_(grad),
            None,
            None,
        )
