"""What steps of a large model take at their peak on an imagined GPU, beside what is planned for them."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.support.gpu_steps import GPU, Way, loop_over
from tunesmith_trainer.base_shapes import read_shapes
from tunesmith_trainer.config import Facts, Wanted, resolve
from tunesmith_trainer.example import Example
from tunesmith_trainer.memory_plan import largest_step, plan

_LAYERS = 4


CASES = {
    "adapters": (Way(), 4096),
    "adapters, small packs": (Way(), 512),
    "adapters, half recomputed": (Way(recomputed=2), 4096),
    "adapters, four bits": (Way(in_four_bits=True), 4096),
    "full weights": (Way(full_weights=True), 4096),
    "full weights, one pack": (Way(full_weights=True), 8192),
    "full weights, all recomputed": (Way(full_weights=True, recomputed=_LAYERS), 1024),
    "full weights, offloaded": (Way(full_weights=True, offloaded=True), 4096),
}
"""Ways to take steps of 16 rows of 512 tokens, all but 12 of them learnt, and the tokens of a pack."""


def peaks() -> dict[str, tuple[int, int]]:
    """Bytes at the peak of the second step and those that are planned without the process, of every way."""
    return {name: _peak(*case) for name, case in CASES.items()}


class _Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch
    """Counts the bytes that tensors take on the GPU while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch
        self.now = self.peak = 0
        self._known: set[int] = set()

    def count(self, tensor: Tensor) -> None:
        """Once for each storage, until it is gone."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if tensor.device != GPU or key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                self.count(one)
        return out

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _peak(way: Way, pack_tokens: int) -> tuple[int, int]:
    # As wide as Llama 3.1 8B.
    shape = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=_LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    rows = [Example(row, np.full(512, row, np.int32), np.arange(512) >= 12) for row in range(16)]
    wanted = Wanted(full_weights=way.full_weights, seed=1, n_epochs=2, batch_size=16, lora_rank=16)
    config = resolve(wanted, Facts(16, 512, 500, 4096, "llama", 2048))[0]
    with FakeTensorMode(allow_non_fake_inputs=True):
        loop, model, optimizer = loop_over(rows, shape, config, way, pack_tokens)
        with _Allocated() as allocated:
            kept = [(one.first, one.second, one.lower) for one in optimizer._kept.values()]
            for tensor in (*model.parameters(), *model.buffers(), *tree_leaves(kept)):
                if tensor is not None:
                    allocated.count(tensor)
            loop._take(1)
            loop._take(2)
    with torch.device("meta"):
        shapes = read_shapes(AutoModelForCausalLM.from_config(shape))
    need = plan(
        shapes,
        config,
        largest_step(shapes, config, rows, pack_tokens, gpu=True),
        "bfloat16",
        gpu=True,
        recomputed_layers=way.recomputed,
        offloaded=way.offloaded,
        in_four_bits=way.in_four_bits,
    )
    return allocated.peak, need.needed - need.terms["process"]
