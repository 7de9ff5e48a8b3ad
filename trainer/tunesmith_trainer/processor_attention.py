"""Owns attention inside a pack on a processor: one operator for all documents, forward and back.
Must not know models, data, losses or GPUs."""

from typing import Any

import torch
from torch import Tensor

from tunesmith_trainer.attention_gradients import gradients

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(query: Tensor, key: Tensor, value: Tensor, blocks: Tensor, scaling: float, window: int | None) -> Tensor:
    """Causal attention within documents; a token sees at most `window` tokens, itself included.

    query (1, heads, T, d), key and value (1, key heads, T, d). `blocks` (n, 4) int32 are ranges of queries and of the
    keys that they see, from and to before: first segments that see themselves and make up all of T, then shared
    prefixes with what continues them in documents no longer than the window. Returns (1, T, heads, d).
    """
    out: Tensor = _attend(query, key, value, blocks, scaling, window)[0]
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
    query: Tensor, key: Tensor, value: Tensor, blocks: Tensor, scaling: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """What `attend` returns, and the logarithms of the softmaxes' sums (T, heads) that the gradient needs."""
    out, sums = _empty_outputs(query)
    for queries, keys in _ranges(blocks):
        q, k, v = query[:, :, queries], key[:, :, keys], value[:, :, keys]
        own = queries == keys
        seen = _mask(q, window) if own else None
        answer, log_sums = _forward(q, k, v, 0.0, own and seen is None, attn_mask=seen, scale=scaling)
        answer, log_sums = answer.transpose(1, 2), log_sums[0].t()
        if own:
            out[:, queries], sums[queries] = answer, log_sums
        else:
            _join(out[:, queries], sums[queries], answer, log_sums)
    return out, sums


def _join(out: Tensor, sums: Tensor, answer: Tensor, log_sums: Tensor) -> None:
    """Makes of attention to some keys, in place, that to others as well: softmaxes weigh in by their sums."""
    whole = torch.logaddexp(sums, log_sums)
    before, now = ((part - whole).exp_()[None, ..., None] for part in (sums, log_sums))
    out.copy_(out * before + answer * now)
    sums.copy_(whole)


@torch.library.custom_op("tunesmith::attend_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    blocks: Tensor,
    scaling: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each laid out as (1, T, heads, d).

    With the whole answer and the sum over all keys, the kernel's gradients are those through the keys that it is given.
    """
    grads = tuple(_empty_gradient(part) for part in (query, key, value))
    for queries, keys in _ranges(blocks):
        q, k, v = query[:, :, queries], key[:, :, keys], value[:, :, keys]
        grad_out, answer = (part[:, queries].transpose(1, 2) for part in (grad, out))
        log_sums = sums[queries].t()[None]
        own = queries == keys
        seen = _mask(q, window) if own else None
        if query.dtype == torch.bfloat16:
            found = gradients(grad_out, q, k, v, answer, log_sums, scaling, causal=own, mask=seen)
        else:
            causal = own and seen is None
            found = _backward(grad_out, q, k, v, answer, log_sums, 0.0, causal, attn_mask=seen, scale=scaling)
        for whole, where, part in zip(grads, (queries, keys, keys), found, strict=True):
            if own:
                whole[:, where] = part.transpose(1, 2)
            else:
                whole[:, where] += part.transpose(1, 2)
    return grads[0], grads[1], grads[2]


@_attend.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_outputs(query)


@_attend_backward.register_fake
def _(_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradient(query), _empty_gradient(key), _empty_gradient(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, blocks, ctx.scaling, ctx.window = inputs
    ctx.save_for_backward(query, key, value, *output, blocks)


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
    grads = _attend_backward(grad, *ctx.saved_tensors, ctx.scaling, ctx.window)
    query, key, value = (part.transpose(1, 2) for part in grads)
    return query, key, value, None, None, None


_attend.register_autograd(_gradients, setup_context=_keep)


def _ranges(blocks: Tensor) -> list[tuple[slice, slice]]:
    """Queries and keys of all blocks but empty ones."""
    return [(slice(start, end), slice(*keys)) for start, end, *keys in blocks.tolist() if start < end]


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
