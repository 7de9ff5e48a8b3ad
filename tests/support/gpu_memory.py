"""What steps of a large model take at their peak on an imagined GPU, beside what is planned for them."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.support.gpu_steps import GPU, build
from tests.support.onlooker import Onlooker
from tunesmith_trainer import lora
from tunesmith_trainer.base_shapes import read_shapes
from tunesmith_trainer.config import Facts, Wanted, resolve
from tunesmith_trainer.example import Example
from tunesmith_trainer.loop import Loop
from tunesmith_trainer.memory_plan import largest_step, plan
from tunesmith_trainer.optim import Optimizer
from tunesmith_trainer.recompute import recompute

_LAYERS = 4


@dataclass(frozen=True)
class Case:
    """Steps of 16 rows of 512 tokens, all but 12 of them learnt."""

    full_weights: bool
    pack_tokens: int
    recomputed: int = 0
    offloaded: bool = False
    in_four_bits: bool = False


CASES = {
    "adapters": Case(full_weights=False, pack_tokens=4096),
    "adapters, small packs": Case(full_weights=False, pack_tokens=512),
    "adapters, half recomputed": Case(full_weights=False, pack_tokens=4096, recomputed=2),
    "adapters, four bits": Case(full_weights=False, pack_tokens=4096, in_four_bits=True),
    "full weights": Case(full_weights=True, pack_tokens=4096),
    "full weights, one pack": Case(full_weights=True, pack_tokens=8192),
    "full weights, all recomputed": Case(full_weights=True, pack_tokens=1024, recomputed=_LAYERS),
    "full weights, offloaded": Case(full_weights=True, pack_tokens=4096, offloaded=True),
}


def peaks() -> dict[str, tuple[int, int]]:
    """Bytes at the peak of the second step and those that are planned without the process, of every case."""
    return {name: _peak(case) for name, case in CASES.items()}


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


def _peak(case: Case) -> tuple[int, int]:
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
    wanted = Wanted(full_weights=case.full_weights, seed=1, n_epochs=2, batch_size=16, lora_rank=16)
    config = resolve(wanted, Facts(16, 512, 500, 4096, "llama", 2048))[0]
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build(shape, in_four_bits=case.in_four_bits)
        if not case.full_weights:
            lora.attach(model, config.lora_rank, config.lora_alpha, config.seed)
        optimizer = Optimizer(model.named_parameters(), offloaded=case.offloaded)
        recompute(model, case.recomputed)
        loop = Loop(model, optimizer, config, rows, rows, case.pack_tokens, Onlooker())
        with _Allocated() as allocated:
            for tensor in (*model.parameters(), *model.buffers(), *optimizer._masters.values()):
                allocated.count(tensor)
            loop._take(1)
            allocated.peak = 0  # of a step to which the optimizer's moments are new
            loop._take(2)
    with torch.device("meta"):
        shapes = read_shapes(AutoModelForCausalLM.from_config(shape))
    need = plan(
        shapes,
        config,
        largest_step(shapes, config, rows, case.pack_tokens, gpu=True),
        "bfloat16",
        gpu=True,
        recomputed_layers=case.recomputed,
        offloaded=case.offloaded,
        in_four_bits=case.in_four_bits,
    )
    return allocated.peak, need.needed - need.terms["process"]
