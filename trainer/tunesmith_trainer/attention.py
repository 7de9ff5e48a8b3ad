"""Owns attention inside a pack: causal within each document, windowed or capped as the layer says, nothing across.
Must not know models, data or losses."""

import inspect
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from tunesmith_trainer.device_copies import to_device
from tunesmith_trainer.gpus import FIRST_WITH_BFLOAT16
from tunesmith_trainer.packing import Pack
from tunesmith_trainer.processor_attention import attend, window_mask

NAME = "tunesmith_documents"
# Older releases lack grouped-query support in the kernel; the loop over documents serves every device.
_KERNEL_GROUPS_QUERIES = "enable_gqa" in inspect.signature(varlen_attn).parameters
# What layers pass on that changes nothing here: positions are in queries and keys already, and packs have no cache.
_WITHOUT_EFFECT = frozenset({"position_ids", "use_cache"})


class Documents:
    """Where the documents of a pack lie, on the model's device.

    `boundaries` are the cumulative sums of its segments' lengths from 0, int32. `blocks` (blocks, 4) int32 are ranges
    of queries and of the keys that they see, from and to before: each segment itself, then what it shares with others,
    then an empty one, so that compiled code never meets a single block.
    """

    def __init__(self, batch: Pack, device: torch.device) -> None:
        self.lengths, self.shared = batch.lengths, batch.shared
        ends = [0, *accumulate(batch.lengths)]
        self.boundaries = to_device(torch.tensor(ends, dtype=torch.int32), device)
        own = [(start, end, start, end) for start, end in pairwise(ends)]
        others = [(end, last, start, end) for start, end, last in batch.shared]
        self.blocks = to_device(torch.tensor([*own, *others, (0, 0, 0, 0)], dtype=torch.int32), device)


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
    documents: Documents,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attends within documents.

    A token sees at most `sliding_window` tokens, itself included; scores s become softcap · tanh(s / softcap).
    Raises TypeError for any other wish of a layer, which would be trained wrongly if it were passed over.

    query (1, heads, T, d), key and value (1, key heads, T, d), where T is the number of the pack's tokens.
    Returns (1, T, heads, d).
    """
    strange = sorted(name for name in others.keys() - _WITHOUT_EFFECT if others[name] is not None)
    if strange:
        raise TypeError(f"attention within documents knows nothing of {', '.join(strange)}")
    if softcap is None and _fits_kernel(query):
        return _in_one_kernel(query, key, value, documents, scaling, sliding_window), None
    if query.device.type == "cpu" and softcap is None:
        return attend(query, key, value, documents.blocks, scaling, sliding_window), None
    if documents.shared:
        raise TypeError("only attention on a processor, without a softcap, takes packs that share prefixes")
    lengths = list(documents.lengths)
    parts = zip(*(torch.split(part, lengths, dim=2) for part in (query, key, value)), strict=True)
    if softcap is None:
        outputs = [_in_document(q, k, v, scaling, sliding_window) for q, k, v in parts]
    else:
        # Its scores are kept for no layer but the one that goes back: they grow with the square of the length.
        outputs = [
            checkpoint(_capped, q, k, v, scaling, sliding_window, softcap, use_reentrant=False) for q, k, v in parts
        ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _fits_kernel(query: Tensor) -> bool:
    """Whether flash attention, as torch hands it out, computes these: it pads no heads and has no way round for others.

    Of torch's `mha_varlen_fwd` (aten/native/transformers/cuda/flash_attn).
    """
    width = query.shape[-1]
    if not (query.is_cuda and _KERNEL_GROUPS_QUERIES and query.dtype in (torch.bfloat16, torch.float16)):
        return False
    return width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability(query.device)[0] >= FIRST_WITH_BFLOAT16


def _in_document(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None) -> Tensor:
    # Repeated here: told of groups, a GPU that lacks flash attention writes down the scores of all pairs of tokens.
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    seen = window_mask(query, window)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, is_causal=seen is None, scale=scaling
    )


def _capped(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, softcap: float) -> Tensor:
    """The fused kernels cannot cap. The softmax is float32, as in the models that do this."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    scores = (scores / softcap).tanh() * softcap
    length = query.shape[2]
    seen = window_mask(query, window)
    if seen is None:
        seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value


def _in_one_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    scaling: float,
    window: int | None,
) -> Tensor:
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    longest = max(documents.lengths)
    out = varlen_attn(
        q,
        k,
        v,
        documents.boundaries,
        documents.boundaries,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("Tensor", out).unsqueeze(0)
