"""Owns compiling the decoder's layers: when it pays, and going on without where it cannot be done.
Must not know data, optimizers or the control plane."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith_trainer.base_shapes import decoder_layers
from tunesmith_trainer.example import Example
from tunesmith_trainer.objectives import score
from tunesmith_trainer.packing import pack

# Tokens times parameters: SmolLM2-135M on two cores for six minutes in float32. From there on the quarter of a minute
# that compiling takes comes back. No measurement goes into it, so that a resumed run decides as the first attempt did.
LEAST_WORK = 2e13
# A GPU takes longer to compile for and does some minutes' work of this size: 8 billion weights on a million tokens.
LEAST_WORK_ON_GPU = 1e16
# 10 documents (11 boundaries) of 43 tokens: where a size happens to be one of the model's, the compiler takes them for
# the same and ties its code to it.
_TRIAL_LENGTHS = (4, 4, 4, 4, 4, 4, 4, 4, 4, 7)


def pays(model: nn.Module, tokens: int) -> bool:
    """Whether training the model on so many computed tokens is long enough."""
    parameters = list(model.parameters())
    least = LEAST_WORK_ON_GPU if parameters[0].is_cuda else LEAST_WORK
    return tokens * sum(one.numel() for one in parameters) >= least


def compile_layers(model: nn.Module, cache: Path) -> str | None:
    """Makes each decoder layer run as compiled code where gradients are wanted, whatever the packs' lengths.

    Code is kept in the folder `cache` for later runs.
    Returns why the model stays as it was, None where it was compiled.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    # Processes that compile would stay through the whole run, each with a copy of torch.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    layers = decoder_layers(model)
    for layer in layers:
        layer.forward = _where_gradients_are_wanted(layer.forward)
    try:
        _try(model)
    except Exception as error:  # a missing or failing C++ compiler shows in many ways, and none may stop a run
        for layer in layers:
            del layer.forward
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    finally:
        model.zero_grad(set_to_none=True)
    torch._dynamo.config.suppress_errors = True  # what is compiled anew later, if anything, must stop no run either
    return None


def _where_gradients_are_wanted(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Evaluation runs too seldom to compile for it."""
    compiled = torch.compile(forward, dynamic=True)

    def either(*arguments: Any, **named: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else forward)(*arguments, **named)

    return either


def _try(model: nn.Module) -> None:
    """One pass forward and back over a few tokens, which compiles everything."""
    examples = [Example(1, np.ones(length, np.int32), np.arange(length) > 1) for length in _TRIAL_LENGTHS]
    (batch,) = pack(examples, sum(_TRIAL_LENGTHS))
    score(model, batch).total.backward()  # type: ignore[no-untyped-call]  # torch
