"""Owns attention inside a pack: causal within each document, nothing across documents, no dense mask.
Must not know models, data or losses."""

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

NAME = "tunesmith_documents"
# Older releases lack grouped-query support in the kernel; the loop over documents serves every device.
_KERNEL_GROUPS_QUERIES = "enable_gqa" in inspect.signature(varlen_attn).parameters


def register() -> None:
    """Makes the attention available to transformers as `attn_implementation=NAME`. May be repeated."""
    AttentionInterface.register(NAME, document_attention)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    lengths: tuple[int, ...],
    boundaries: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attends within documents.

    query (1, heads, T, d), key and value (1, key heads, T, d). `lengths` are the documents' token counts in order and
    sum to T; `boundaries` are their cumulative sums from 0, int32, on the same device. Returns (1, T, heads, d).
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and _KERNEL_GROUPS_QUERIES:
        return _in_one_kernel(query, key, value, boundaries, max(lengths), scaling), None
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(*(torch.split(part, list(lengths), dim=2) for part in (query, key, value)), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _in_one_kernel(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scaling: float
) -> Tensor:
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("Tensor", out).unsqueeze(0)
