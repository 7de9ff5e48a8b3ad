"""Owns the proof that exported files answer as the trained model does: both find the same tokens equally likely.
Must not know how files are written or where they go."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith_trainer.errors import Problem, RunFailed
from tunesmith_trainer.example import Example
from tunesmith_trainer.objectives import score
from tunesmith_trainer.packing import pack

BOUNDS = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}
"""Nats between log-probabilities, in the mean of all tokens, that rounding explains, by the coarsest dtype that either
side computes in or is stored in. Measured on SmolLM2-135M after training: 2e-5 and, in bfloat16, 0.1; float16 rounds
to eighths of that."""
_WORST = 8
"""How many times the bound a single token may be apart: rounding makes up to five times the mean of one."""


def prove(model: nn.Module, answers: Sequence[Mapping[str, Any]], coarsest: torch.dtype) -> None:
    """Raises RunFailed unless the model in memory agrees with `answers` that were made with the exported files.

    Where the run has several ranks, all must call it.

    Each answer has `prompt_token_ids`, and `token_ids` with their natural `logprobs`.
    """
    differences = torch.cat([_apart(model, answer) for answer in answers] or [torch.zeros(1)])
    bound, apart = BOUNDS[coarsest], max(float(differences.mean()), float(differences.max()) / _WORST)
    if not apart <= bound:  # also where it is no number
        message = (
            f"The exported files do not answer as the trained model does: log-probabilities are {apart:.2g} nats "
            f"apart, {bound:g} are allowed. They were not saved; checkpoints from before can be used. "
            "If it happens again, tell who runs this service the base model's name."
        )
        raise RunFailed(Problem("export_differs", message, "model"))


def _apart(model: nn.Module, answer: Mapping[str, Any]) -> torch.Tensor:
    """Differences in nats between the log-probabilities of one answer's tokens, float32."""
    prompt, tokens = answer["prompt_token_ids"], answer["token_ids"]
    token_ids = np.array([*prompt, *tokens], dtype=np.int32)
    (batch,) = pack([Example(0, token_ids, np.arange(len(token_ids)) >= len(prompt))], len(token_ids))
    with torch.no_grad():  # not inference mode: a sharded model is trained on with what it gathers here
        in_memory = -score(model, batch).losses.cpu()
    return (in_memory - torch.tensor(answer["logprobs"])).abs()
