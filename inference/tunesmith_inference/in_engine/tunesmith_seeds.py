"""Owns what vLLM lacks on processors: seeds of requests whose prompts are computed in several parts.

It must not know the gateway: vLLM imports it into the process that computes, as `--worker-extension-cls`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class Extension:
    """What vLLM asks for by name; to import this module is all that it is for."""


def _without_unfinished(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of the runner for which requests whose prompt is not computed to its end have no seed.

    What is drawn for them is thrown away, and vLLM then turns their generators back, which those of processors cannot:
    the engine would end. So they are not turned on either.
    """

    @wraps(step)
    def stepped(self: Any, *arguments: Any, **options: Any) -> Any:
        batch = self.input_batch
        unfinished = self.discard_request_mask.np[: batch.num_reqs].nonzero()[0]
        held = {index: batch.generators.pop(index) for index in map(int, unfinished) if index in batch.generators}
        try:
            return step(self, *arguments, **options)
        finally:
            batch.generators.update(held)

    return stepped


GPUModelRunner._sample = _without_unfinished(GPUModelRunner._sample)
GPUModelRunner._bookkeeping_sync = _without_unfinished(GPUModelRunner._bookkeeping_sync)
