"""Owns gradients of attention in bfloat16 on a processor, made by plain products for some queries after the others.
Must not know packs, models or GPUs."""

import torch
from torch import Tensor

_QUERIES = 128  # at once: their scores stay in the caches, and what lies after them is not computed
_LATER = torch.full((_QUERIES, _QUERIES), -torch.inf).triu_(1)  # added to their scores with keys at their own places


def gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    answer: Tensor,
    log_sums: Tensor,
    scaling: float,
    *,
    causal: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value in float32, as of torch's own kernel, which takes two to three times as long.

    grad, query and answer (1, heads, L, d), key and value (1, key heads, K, d) in bfloat16, log_sums (1, heads, L) in
    float32; `causal`: L is K, and a token sees those before it and itself, or fewer where there is a `mask` (L, K),
    which is added to scores: 0 for what is seen, else -inf. Softmaxes and sums are in float32, scores rounded to
    bfloat16 before: whole models' gradients differ no more from those in float32 for it.
    """
    groups = key.shape[1]
    to_query = torch.empty(query.shape, dtype=torch.float32)
    to_key, to_value = (torch.zeros(part.shape[1:], dtype=torch.float32) for part in (key, value))
    falls = (grad.float() * answer).sum(-1)[0]
    for start in range(0, query.shape[2], _QUERIES):
        rows = slice(start, min(start + _QUERIES, query.shape[2]))
        seen = slice(0, rows.stop if causal else key.shape[2])
        # Heads that share a key lie behind one another: (key heads, heads / key heads · rows, d).
        asked, wanted = (part[0, :, rows].reshape(groups, -1, part.shape[-1]) for part in (query, grad))
        keys_seen, values_seen = key[0, :, seen], value[0, :, seen]
        scores = (asked @ keys_seen.mT).float().mul_(scaling)
        if mask is not None:
            scores.view(-1, *mask[rows, seen].shape).add_(mask[rows, seen])
        elif causal:
            count = rows.stop - start
            scores.view(-1, count, rows.stop)[:, :, rows] += _LATER[:count, :count]
        weights = scores.sub_(log_sums[0, :, rows].reshape(groups, -1, 1)).exp_()
        to_value[:, seen] += weights.to(grad.dtype).mT @ wanted
        slopes = (wanted @ values_seen.mT).float().sub_(falls[:, rows].reshape(groups, -1, 1))
        slopes = slopes.mul_(weights).mul_(scaling).to(grad.dtype)
        to_query[0, :, rows] = (slopes @ keys_seen).view(query.shape[1], -1, query.shape[-1])
        to_key[:, seen] += slopes.mT @ asked
    return to_query, to_key[None], to_value[None]
