"""Owns the arithmetic of an adapted linear layer: forward, gradients, and how the delta starts.
Must not know models, the adapter's file format, data or losses."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith_trainer.four_bit_linear import FourBitLinear
from tunesmith_trainer.products import exact_product, product


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trained low-rank delta: y = x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ.

    `scale` is alpha / rank, or alpha / √rank with `use_rslora` (rank-stabilised LoRA). A is (rank, in) and B is
    (out, rank), both float32 whatever the base's dtype. B starts at zero, A as in PEFT.
    """

    def __init__(
        self,
        base: nn.Linear | FourBitLinear,
        rank: int,
        alpha: float,
        generator: torch.Generator,
        *,
        use_rslora: bool = False,
    ) -> None:
        super().__init__()
        device = (base.codes if isinstance(base, FourBitLinear) else base.weight).device
        self.base = base.requires_grad_(requires_grad=False)
        self.alpha = alpha
        self.use_rslora = use_rslora
        self.scale = alpha / (math.sqrt(rank) if use_rslora else rank)
        # Kaiming uniform with a = sqrt(5), as PEFT draws it: the bound is 1 / sqrt(in).
        start = torch.empty(rank, base.in_features).uniform_(-1, 1, generator=generator) / math.sqrt(base.in_features)
        self.lora_A = nn.Parameter(start.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) to (…, out), in x's dtype."""
        rows = x.reshape(-1, x.shape[-1])
        if isinstance(self.base, FourBitLinear):
            reduced = rows @ self.lora_A.to(x.dtype).t()
            added = torch.addmm(self.base(rows), reduced, self.lora_B.to(x.dtype).t(), alpha=self.scale)
            return added.view(*x.shape[:-1], -1)
        adapt: Callable[..., Any] = _adapted_op if torch.compiler.is_compiling() else _Adapted.apply
        out: Tensor = adapt(rows, self.base.weight, self.base.bias, self.lora_A, self.lora_B, self.scale)[0]
        return out.view(*x.shape[:-1], -1)


def _adapted(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The adapted product of x (T, in), and x·Aᵀ (T, rank), which its gradient needs."""
    reduced = product(x, a.to(x.dtype).t())
    return product(x, weight.t(), bias).addmm_(reduced, b.to(x.dtype).t(), alpha=scale), reduced


def _adapted_backward(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, reduced: Tensor, scale: float, wants_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (empty unless wanted), A and B."""
    grad_reduced = product(grad, b.to(grad.dtype))
    grad_a = exact_product(grad_reduced.t(), x).mul_(scale)
    # The other way round this thin product takes three times as long on a processor.
    grad_b = exact_product(reduced.t(), grad).mul_(scale).t().contiguous()
    if not wants_x:
        return x.new_empty(0), grad_a, grad_b
    return product(grad, weight).addmm_(grad_reduced, a.to(grad.dtype), alpha=scale), grad_a, grad_b


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, a, b, ctx.scale = inputs
    ctx.save_for_backward(x, weight, a, b, output[1])


class _Adapted(torch.autograd.Function):
    """The adapted product outside compiled code, where the operators below would cost a GPU's host as much again."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _adapted(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        _keep(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        return _gradients(ctx, grad, _adapted_backward)


# Operators of their own, so that compiled layers keep the sums inside the products as well: the compiler would take
# `addmm_` apart into a copy and a product.
_adapted_op = torch.library.custom_op("tunesmith::adapted", _adapted, mutates_args=())
_adapted_backward_op = torch.library.custom_op("tunesmith::adapted_backward", _adapted_backward, mutates_args=())


@_adapted_op.register_fake
def _(x: Tensor, weight: Tensor, _bias: Tensor | None, a: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], a.shape[0])


@_adapted_backward_op.register_fake
def _(
    _grad: Tensor, x: Tensor, _weight: Tensor, a: Tensor, b: Tensor, _reduced: Tensor, _scale: float, wants_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x) if wants_x else x.new_empty(0), torch.empty_like(a), torch.empty_like(b)


def _gradients(
    ctx: Any, grad: Tensor, adapted_backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
    x, weight, a, b, reduced = ctx.saved_tensors
    wants_x = ctx.needs_input_grad[0]
    grad_x, grad_a, grad_b = adapted_backward(grad, x, weight, a, b, reduced, ctx.scale, wants_x)
    return grad_x if wants_x else None, None, None, grad_a, grad_b, None


_adapted_op.register_autograd(lambda ctx, grad, _: _gradients(ctx, grad, _adapted_backward_op), setup_context=_keep)
