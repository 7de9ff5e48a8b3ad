"""Owns float32 numbers in two halves: the bfloat16 next to each, and the bits by which the number differs from it.
Must not know what the numbers are for."""

import torch
from torch import Tensor

# Half of a bfloat16's last place, by which bits are moved: the upper 16 of the sum are the number rounded to nearest
# (halves away from zero), the lower 16 what `lower` holds. Halves lie as they do on little-endian machines, and GPUs.
_HALF = 0x8000
_LOWER, _UPPER = 0, 1


def lower_of(upper: Tensor) -> Tensor:
    """The lower halves of bfloat16 numbers that are exact.

    They are of the numbers' shape and dtype: not that they mean anything in it, but libraries that send tensors from
    GPU to GPU know no integers of 16 bits.
    """
    return torch.full_like(upper, -0.0)  # the bits of `_HALF`


def join(upper: Tensor, lower: Tensor) -> Tensor:
    """The float32 numbers of two bfloat16 tensors of the same shape, of at least one dimension."""
    joined = torch.empty(upper.shape, dtype=torch.float32, device=upper.device)
    halves = _halves(joined)
    halves[..., _UPPER] = upper.view(torch.int16)
    halves[..., _LOWER] = lower.view(torch.int16)
    joined.view(torch.int32).sub_(_HALF)
    return joined


def split(numbers: Tensor, upper: Tensor, lower: Tensor) -> None:
    """Writes float32 numbers, which are lost, into `upper` and `lower`, such that `join` gives the same bits.

    Of NaNs, those that processors and GPUs make stay NaNs.
    """
    numbers.view(torch.int32).add_(_HALF)
    halves = _halves(numbers)
    upper.view(torch.int16).copy_(halves[..., _UPPER])
    lower.view(torch.int16).copy_(halves[..., _LOWER])


def _halves(numbers: Tensor) -> Tensor:
    return numbers.view(torch.int16).view(*numbers.shape, 2)
