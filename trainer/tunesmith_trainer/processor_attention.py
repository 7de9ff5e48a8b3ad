"""Owns attention inside a pack on a processor: one operator for all documents, forward and back.
Must not know models, data, losses or GPUs."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scaling: float, window: int | None) -> Tensor:
    """Causal attention within documents; a token sees at most `window` tokens, itself included.

    query (1, heads, T, d), key and value (1, key heads, T, d); `boundaries` (documents + 1,) int32 are cumulative
    lengths from 0 to T. Returns (1, T, heads, d).
    """
    out: Tensor = _attend(query, key, value, boundaries, scaling, window)[0]
    return out


def window_mask(query: Tensor, window: int | None) -> Tensor | None:
    """(T, T), True where a token of the document may look; None where it is no longer than the window."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=query.device).tril_().triu_(1 - window)


# Operators of their own, so that a compiled layer stays in one piece whatever the number and lengths of documents.


@torch.library.custom_op("tunesmith::attend", mutates_args=())
def _attend(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scaling: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """What `attend` returns, and the logarithms of the softmaxes' sums (T, heads) that the gradient needs."""
    out, sums = _empty_outputs(query)
    for start, end in _documents(boundaries):
        q, k, v = (part[:, :, start:end] for part in (query, key, value))
        seen = _mask(q, window)
        answer, log_sums = _forward(q, k, v, 0.0, seen is None, attn_mask=seen, scale=scaling)
        out[:, start:end] = answer.transpose(1, 2)
        sums[start:end] = log_sums[0].t()
    return out, sums


@torch.library.custom_op("tunesmith::attend_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    boundaries: Tensor,
    scaling: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each laid out as (1, T, heads, d)."""
    grads = tuple(_empty_gradient(part) for part in (query, key, value))
    for start, end in _documents(boundaries):
        # In bfloat16 the kernel takes about twice as long.
        q, k, v = (part[:, :, start:end].float() for part in (query, key, value))
        grad_out, answer = (part[:, start:end].transpose(1, 2).float() for part in (grad, out))
        seen = _mask(q, window)
        found = _backward(
            grad_out, q, k, v, answer, sums[start:end].t()[None], 0.0, seen is None, attn_mask=seen, scale=scaling
        )
        for whole, part in zip(grads, found, strict=True):
            whole[:, start:end] = part.transpose(1, 2)
    return grads[0], grads[1], grads[2]


@_attend.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(query)


@_attend_backward.register_fake
def _(_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradient(query), _empty_gradient(key), _empty_gradient(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, boundaries, ctx.scaling, ctx.window = inputs
    ctx.save_for_backward(query, key, value, *output, boundaries)


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
    grads = _attend_backward(grad, *ctx.saved_tensors, ctx.scaling, ctx.window)
    query, key, value = (part.transpose(1, 2) for part in grads)
    return query, key, value, None, None, None


_attend.register_autograd(_gradients, setup_context=_keep)


def _documents(boundaries: Tensor) -> Iterator[tuple[int, int]]:
    return pairwise(boundaries.tolist())


def _empty_outputs(query: Tensor) -> tuple[Tensor, Tensor]:
    _, heads, tokens, width = query.shape
    return query.new_empty(1, tokens, heads, width), query.new_empty(tokens, heads, dtype=torch.float32)


def _empty_gradient(part: Tensor) -> Tensor:
    _, heads, tokens, width = part.shape
    return part.new_empty(1, tokens, heads, width)


def _mask(query: Tensor, window: int | None) -> Tensor | None:
    """(T, T), 0 where a token may look and -inf elsewhere; None where the document is no longer than the window."""
    seen = window_mask(query, window)
    return None if seen is None else torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, -torch.inf)
