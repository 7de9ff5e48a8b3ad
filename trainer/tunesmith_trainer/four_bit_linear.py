"""Owns linear layers whose frozen weight is kept in four bits (NF4), and what those bits stand for.
Must not know adapters, models' families or when that is needed."""

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunesmith_trainer.products import product

_BLOCK = 64  # weights in a row that share a scale, the largest magnitude among them
BYTES_PER_WEIGHT = 0.5 + 4 / _BLOCK
"""Of a weight in four bits with its share of the scales."""

# Sixteen quantiles of normally distributed numbers, scaled to -1 … 1 so that zero is among them: NormalFloat of QLoRA
# (Dettmers et al. 2023, arXiv 2305.14314, appendix E).
_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class FourBitLinear(nn.Module):
    """A frozen nn.Linear: y = x·Wᵀ + bias, W made whole for each product and not kept.

    `codes` (⌈out·in / 64⌉, 32) hold two weights in each byte (uint8), `scales` (⌈out·in / 64⌉, 1) are float32.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        codes, scales = quantise(plain.weight.detach())
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) to (…, out), in x's dtype."""
        rows = x.reshape(-1, self.in_features)
        made: Tensor = _linear(rows, self.codes, self.scales, self.bias, self.out_features)
        return made.view(*x.shape[:-1], -1)


def install(layers: nn.Module, device: torch.device) -> None:
    """Puts such a layer in the place of every linear layer inside, on the device; the layers' names stay.

    One weight after the other is there as a whole, to be quantised: a processor takes minutes for billions of numbers.
    """
    # Names alone: a list of the layers would hold each one's whole weight on the device to the end.
    names = [name for name, module in layers.named_modules() if isinstance(module, nn.Linear)]
    for name in names:
        plain = cast("nn.Linear", layers.get_submodule(name))
        layers.set_submodule(name, FourBitLinear(plain.to(device)))


def round_weights(layers: nn.Module) -> None:
    """Gives every linear layer inside the weight that four bits would stand for; it stays as large and as fast."""
    for module in layers.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            with torch.no_grad():
                weight.copy_(restore(*quantise(weight), (module.out_features, module.in_features), weight.dtype))


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of a weight of any shape and float dtype: of each number the nearest level."""
    flat = weight.float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)
    scales = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(_LEVELS, device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    nearest = torch.bucketize(blocks / scales.clamp(min=torch.finfo(torch.float32).tiny), between, out_int32=True)
    nearest = nearest.to(torch.uint8)
    return nearest[:, 0::2] * 16 + nearest[:, 1::2], scales


def restore(codes: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that codes and scales stand for."""
    numbers = nn.functional.embedding(codes.int(), _pairs(codes.device)).view(-1, _BLOCK).mul_(scales)
    return numbers.flatten()[: shape[0] * shape[1]].view(shape).to(dtype)


@functools.cache
def _pairs(device: torch.device) -> Tensor:
    """The two levels (256, 2) of each byte. Kept: made anew, each would have the host wait for the GPU."""
    levels = torch.tensor(_LEVELS, device=device)
    return torch.stack([levels.repeat_interleave(len(levels)), levels.repeat(len(levels))], 1)


# An operator of its own, so that the whole weight is not kept for the backward pass, which makes it once more.


@torch.library.custom_op("tunesmith::four_bit_linear", mutates_args=())
def _linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, out: int) -> Tensor:
    """x (T, in) · Wᵀ + bias."""
    return product(x, restore(codes, scales, (out, x.shape[1]), x.dtype).t(), bias)


@torch.library.custom_op("tunesmith::four_bit_linear_backward", mutates_args=())
def _linear_backward(grad: Tensor, codes: Tensor, scales: Tensor, width: int) -> Tensor:
    """The gradient of x (T, width)."""
    return product(grad, restore(codes, scales, (grad.shape[1], width), grad.dtype))


@_linear.register_fake
def _(x: Tensor, _codes: Tensor, _scales: Tensor, _bias: Tensor | None, out: int) -> Tensor:
    return x.new_empty(x.shape[0], out)


@_linear_backward.register_fake
def _(grad: Tensor, _codes: Tensor, _scales: Tensor, width: int) -> Tensor:
    return grad.new_empty(grad.shape[0], width)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, codes, scales, _, _ = inputs
    ctx.width = x.shape[1]
    ctx.save_for_backward(codes, scales)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:
    codes, scales = ctx.saved_tensors
    wants_x = ctx.needs_input_grad[0]
    return _linear_backward(grad, codes, scales, ctx.width) if wants_x else None, None, None, None, None


_linear.register_autograd(_gradients, setup_context=_keep)
