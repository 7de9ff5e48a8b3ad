"""Owns attention inside a pack: causal within each document, nothing across documents, no dense mask.
Must not know models, data or losses."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

NAME = "tunesmith_documents"


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
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and _varlen_attn is not None:
        longest = max(lengths)
        return (
            _varlen_attn(
                query[0].transpose(0, 1),
                key[0].transpose(0, 1),
                value[0].transpose(0, 1),
                boundaries,
                boundaries,
                longest,
                longest,
                scale=scaling,
                window_size=(-1, 0),
                enable_gqa=query.shape[1] != key.shape[1],
            ).unsqueeze(0),
            None,
        )
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


try:  # torch 2.11 and later; older releases lack grouped-query support here and take the loop
    from torch.nn.attention.varlen import varlen_attn as _varlen_attn
except ImportError:
    _varlen_attn = None  # type: ignore[assignment]  # the absence is the capability check
