"""Gradients of attention in bfloat16, beside those of torch's own kernel in float32."""

import pytest
import torch
from torch import Tensor

from tunesmith_trainer import processor_attention
from tunesmith_trainer.attention_gradients import gradients

HEADS, WIDTH, SCALING = 6, 16, 0.25


def drawn(heads: int, length: int) -> Tensor:
    return torch.randn(1, heads, length, WIDTH).bfloat16()


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize(
    ("length", "keys", "window"),
    [(5, None, None), (128, None, None), (300, None, None), (300, None, 90), (200, 40, None)],
)
def test_they_are_those_in_float32_up_to_rounding(
    key_heads: int, length: int, keys: int | None, window: int | None
) -> None:
    torch.manual_seed(0)
    query, grad = drawn(HEADS, length), drawn(HEADS, length)
    key, value = (drawn(key_heads, keys or length) for _ in range(2))
    mask = processor_attention._mask(query, window)
    full = [part.float() for part in (query, key, value)]
    looks = {"attn_mask": None if mask is None else mask.float(), "scale": SCALING}
    causal = keys is None
    answer, log_sums = processor_attention._forward(*full, 0.0, causal and mask is None, **looks)
    wanted = processor_attention._backward(grad.float(), *full, answer, log_sums, 0.0, causal and mask is None, **looks)

    found = gradients(grad, query, key, value, answer.bfloat16(), log_sums, SCALING, causal=causal, mask=mask)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert one.shape == other.shape
        assert float((one - other).norm()) < 0.01 * float(other.norm())
