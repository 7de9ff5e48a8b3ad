"""Float32 numbers in two halves: nothing is lost, and the upper half is the nearest bfloat16."""

import torch
from torch import Tensor

from tunesmith_trainer import float_halves


def numbers() -> Tensor:
    """Patterns of all kinds, among them zeros, subnormal and infinite numbers, and such that lie between two others."""
    torch.manual_seed(0)
    drawn = torch.randint(-(2**31), 2**31, (100_000,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    drawn = drawn[drawn.isfinite()]
    between = (drawn.view(torch.int32) & ~0xFFFF | 0x8000).view(torch.float32)
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, float("inf"), -float("inf"), 1.0, -1.0])
    return torch.cat([special, drawn, between])


def halves_of(single: Tensor) -> tuple[Tensor, Tensor]:
    upper, lower = (torch.empty(single.shape, dtype=torch.bfloat16) for _ in range(2))
    float_halves.split(single.clone(), upper, lower)
    return upper, lower


def test_joined_halves_are_the_number_bit_for_bit() -> None:
    single = numbers()
    joined = float_halves.join(*halves_of(single))
    assert torch.equal(joined.view(torch.int32), single.view(torch.int32))


def test_the_upper_half_is_the_nearest() -> None:
    single = numbers()
    upper, _ = halves_of(single)
    nearest = single.bfloat16()

    lies_between = (single.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(upper[~lies_between].view(torch.int16), nearest[~lies_between].view(torch.int16))
    away_from_zero = (single[lies_between].view(torch.int32) + 0x8000).view(torch.float32).bfloat16()
    assert torch.equal(upper[lies_between], away_from_zero)


def test_bfloat16_numbers_have_halves_that_are_exact() -> None:
    upper = numbers().bfloat16().reshape(-1, 1)
    joined = float_halves.join(upper, float_halves.lower_of(upper))
    assert torch.equal(joined, upper.float())


def test_a_nan_stays_one() -> None:
    nans = torch.tensor([float("nan"), -float("nan")]) * torch.ones(2)
    upper, lower = halves_of(nans)
    assert bool(upper.isnan().all())
    assert bool(float_halves.join(upper, lower).isnan().all())
