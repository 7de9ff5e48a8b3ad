"""Owns linear layers whose products, forward and back, are made as `products` says.
Must not know which models they are in."""

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith_trainer.products import product


class ProcessorLinear(nn.Linear):
    """An nn.Linear with the parameters of another one."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) to (…, out), in x's dtype."""
        made: Tensor = _linear(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return made.view(*x.shape[:-1], -1)


def install(layers: nn.Module) -> None:
    """Puts such layers in the place of every plain linear layer inside; names and parameters stay."""
    for name, module in list(layers.named_modules()):
        if type(module) is nn.Linear:
            layers.set_submodule(name, ProcessorLinear(module))


# An operator of its own: compiled layers would give products to MKL again.


@torch.library.custom_op("tunesmith::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (T, in) · weightᵀ + bias."""
    return product(x, weight.t(), bias)


@torch.library.custom_op("tunesmith::linear_backward", mutates_args=())
def _linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight, each empty unless wanted."""
    grad_x = product(grad, weight) if wants_x else x.new_empty(0)
    return grad_x, product(grad.t(), x) if wants_weight else x.new_empty(0)


@_linear.register_fake
def _(x: Tensor, weight: Tensor, _bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@_linear_backward.register_fake
def _(_grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool) -> tuple[Tensor, Tensor]:
    empty = x.new_empty(0)
    return torch.empty_like(x) if wants_x else empty, torch.empty_like(weight) if wants_weight else empty


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad
    grad_x, grad_weight = _linear_backward(grad, x, weight, wants_x, wants_weight)
    grad_bias = grad.sum(0) if wants_bias else None
    return grad_x if wants_x else None, grad_weight if wants_weight else None, grad_bias


_linear.register_autograd(_gradients, setup_context=_keep)
