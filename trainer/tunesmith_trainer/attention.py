"""Owns attention inside a pack: causal within each document, windowed or capped as the layer says, nothing across.
Must not know models, data or losses."""

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import cache
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
from tunesmith_trainer.processor_attention import attend, window_mask

logger = logging.getLogger(__name__)

NAME = "tunesmith_documents"
# The kernel has always grouped queries; since 2.12 torch refuses to have it do so unless it is told.
_HAS_TO_BE_TOLD_OF_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
_TRIAL_LENGTHS, _TRIAL_WINDOW, _TRIAL_SCALE = (5, 3), 2, 1.5  # of what the kernel would scale by itself
_TOLERANCE = 0.03  # of a norm; bfloat16 costs 0.006
# What layers pass on that changes nothing here: positions are in queries and keys already, and packs have no cache.
_WITHOUT_EFFECT = frozenset({"position_ids", "use_cache"})


class Documents:
    """Where the documents of a pack lie, see `packing.Pack`, on the model's device.

    `boundaries` are the cumulative sums of its segments' lengths from 0, int32. `blocks` (blocks, 4) int32 are ranges
    of queries and of the keys that they see, from and to before: each segment itself, then what it shares with others,
    then an empty one, so that compiled code never meets a single block. `longest` counts the longest segment's tokens.
    """

    def __init__(self, lengths: Sequence[int], shared: Sequence[tuple[int, int, int]], device: torch.device) -> None:
        self.lengths, self.shared, self.longest = lengths, shared, max(lengths)
        ends = [0, *accumulate(lengths)]
        self.boundaries = to_device(torch.tensor(ends, dtype=torch.int32), device)
        own = [(start, end, start, end) for start, end in pairwise(ends)]
        others = [(end, last, start, end) for start, end, last in shared]
        self.blocks = to_device(torch.tensor([*own, *others, (0, 0, 0, 0)], dtype=torch.int32), device)


def register() -> None:
    """Makes the attention available to transformers as `attn_implementation=NAME`. May be repeated."""
    AttentionInterface.register(NAME, document_attention)
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)  # where documents go one by one, it plans for each new length


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
    strange = [name for name, wish in others.items() if wish is not None and name not in _WITHOUT_EFFECT]
    if strange:
        raise TypeError(f"attention within documents knows nothing of {', '.join(strange)}")
    if softcap is None and _fits_kernel(query.device, query.dtype, *_heads(query, key)):
        return _in_one_kernel(query, key, value, documents, scaling, sliding_window), None
    if query.device.type == "cpu" and softcap is None:
        return attend(query, key, value, documents.blocks, scaling, sliding_window), None
    if documents.shared:
        raise TypeError("only attention on a processor, without a softcap, takes packs that share prefixes")
    return _one_by_one(query, key, value, documents, scaling, sliding_window, softcap), None


@cache
def kernel_is_right(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, width: int) -> bool:
    """Whether the kernel for packs gives what exact attention gives, forward and back; tried on two short documents.

    What releases of torch say about it has changed, and a wrong model is worse than a slow run.
    """
    documents = Documents(_TRIAL_LENGTHS, (), device)
    parts = [
        torch.randn(1, count, sum(_TRIAL_LENGTHS), width, generator=torch.Generator().manual_seed(number))
        for number, count in enumerate((heads, key_heads, key_heads))
    ]
    rounded = [part.to(device, dtype) for part in parts]
    is_right = True
    try:
        for window in (None, _TRIAL_WINDOW):
            ours = _tried(_in_one_kernel, rounded, documents, window)
            exact = _tried(_one_by_one, [part.float() for part in rounded], documents, window)
            is_right &= all((a - b).norm() <= _TOLERANCE * b.norm() for a, b in zip(ours, exact, strict=True))
    except Exception as error:  # torch's own checks raise what they like, and the other way is always there
        logger.warning("Attention goes document by document, which is slower. The kernel for packs failed: %s", error)
        return False
    if not is_right:
        logger.warning("Attention goes document by document, which is slower. The kernel for packs is wrong here.")
    return is_right


def _tried(
    attend_all: Callable[..., Tensor], parts: Sequence[Tensor], documents: Documents, window: int | None
) -> list[Tensor]:
    """What attention makes of queries, keys and values, and the gradients of all three."""
    inputs = [part.detach().requires_grad_() for part in parts]
    with torch.enable_grad():
        out = attend_all(*inputs, documents, _TRIAL_SCALE / inputs[0].shape[-1] ** 0.5, window)
        return [out, *torch.autograd.grad(out.sin().sum(), inputs)]


def _heads(query: Tensor, key: Tensor) -> tuple[int, int, int]:
    """How many there are of queries and of keys, and their width."""
    return query.shape[1], key.shape[1], query.shape[3]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch
def _fits_kernel(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, width: int) -> bool:
    """Whether flash attention, as torch hands it out, computes these: it pads no heads and has no way round for others.

    Of torch's `mha_varlen_fwd` (aten/native/transformers/cuda/flash_attn).
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or width % 8 or width > 256:
        return False
    if torch.cuda.get_device_capability(device)[0] < FIRST_WITH_BFLOAT16:
        return False
    return kernel_is_right(device, dtype, heads, key_heads, width)


def _one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    scaling: float,
    window: int | None,
    softcap: float | None = None,
) -> Tensor:
    lengths = list(documents.lengths)
    parts = zip(*(torch.split(part, lengths, dim=2) for part in (query, key, value)), strict=True)
    if softcap is None:
        outputs = [_in_document(q, k, v, scaling, window) for q, k, v in parts]
    else:
        # Its scores are kept for no layer but the one that goes back: they grow with the square of the length.
        outputs = [checkpoint(_capped, q, k, v, scaling, window, softcap, use_reentrant=False) for q, k, v in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2)


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
    grouped: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if _HAS_TO_BE_TOLD_OF_GROUPS else {}
    out = varlen_attn(
        q,
        k,
        v,
        documents.boundaries,
        documents.boundaries,
        documents.longest,
        documents.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    return cast("Tensor", out).unsqueeze(0)
