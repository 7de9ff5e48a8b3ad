"""Owns the arithmetic of an adapted linear layer: forward, gradients, and how the delta starts.
Must not know models, the adapter's file format, data or losses."""

import math
from typing import Any

import torch
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trained low-rank delta: y = x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ.

    `scale` is alpha / rank, or alpha / √rank with `use_rslora` (rank-stabilised LoRA). A is (rank, in) and B is
    (out, rank), both float32 whatever the base's dtype. B starts at zero, A as in PEFT.
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator, *, use_rslora: bool = False
    ) -> None:
        super().__init__()
        device = base.weight.device
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
        a, b = self.lora_A.to(x.dtype), (self.lora_B * self.scale).to(x.dtype)
        delta_input = x.reshape(-1, x.shape[-1])
        out: Tensor = _LoraProduct.apply(delta_input, self.base.weight, self.base.bias, a, b)  # type: ignore[no-untyped-call]  # torch
        return out.view(*x.shape[:-1], -1)


class _LoraProduct(torch.autograd.Function):
    """The adapted product with its sums fused into the multiplications, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        reduced = x @ a.t()
        out = nn.functional.linear(x, weight, bias)
        ctx.save_for_backward(x, weight, a, b, reduced)
        return out.addmm_(reduced, b.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        x, weight, a, b, reduced = ctx.saved_tensors
        grad_reduced = grad @ b
        grad_x = (grad @ weight).addmm_(grad_reduced, a) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_reduced.t() @ x, grad.t() @ reduced
