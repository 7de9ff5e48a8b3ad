"""A few optimizer steps of a real loop on random rows, and what came of them: to compare ways of doing them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.support.onlooker import Onlooker
from tunesmith_trainer import distributed, lora, sharding
from tunesmith_trainer.checkpoint import Progress
from tunesmith_trainer.config import Facts, Wanted, resolve
from tunesmith_trainer.example import Example
from tunesmith_trainer.loop import Loop
from tunesmith_trainer.model import Hardware, load
from tunesmith_trainer.optim import Optimizer

FLOAT32 = Hardware(torch.device("cpu"), "float32", 256, "exact comparison")


@dataclass(frozen=True)
class Steps:
    """Losses of every step, gradients of the first; weights before it and after the last; per row its loss then."""

    losses: list[float]
    gradients: dict[str, Tensor]
    start: dict[str, Tensor]
    weights: dict[str, Tensor]
    rows: list[float]


def example(row: int, length: int, labelled_from: int) -> Example:
    """A row of random tokens, all labelled from there on."""
    generator = np.random.default_rng(row)
    labelled = np.arange(length) >= labelled_from
    return Example(row, generator.integers(0, 200, length).astype(np.int32), labelled)


def take_steps(
    base: Path, examples: Sequence[Example], *, full_weights: bool, batch_size: int, pack_tokens: int
) -> Steps:
    """Trains the model on all rows, one pass, on the ranks there are."""
    wanted = Wanted(full_weights=full_weights, seed=1, n_epochs=1, batch_size=batch_size, lora_rank=4, max_rank=8)
    config = resolve(wanted, Facts(len(examples), 100, 10, 64, "llama", 512))[0]
    model = load(base, FLOAT32)
    if not full_weights:
        lora.attach(model, config.lora_rank, config.lora_alpha, config.seed)
    elif distributed.size() > 1:
        model = sharding.shard(model)
    start = _weights(model, full_weights)
    optimizer = _Watched(sharding.inner(model).named_parameters())
    host = Onlooker()
    trained = Loop(model, optimizer, config, examples, examples, pack_tokens, host).run(Progress(0, 0, "float32", []))
    return Steps(
        [metrics.train_loss for metrics in host.metrics],
        optimizer.gradients[0],
        start,
        _weights(model, full_weights),
        [row.loss for row in trained.chosen.rows],
    )


def assert_moved_alike(start: dict[str, Tensor], found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """That training changed each of these float32 weights as it was to, within a hundredth of the change (L2 norms).

    Not number by number: where a gradient is nothing but rounding, Adam still makes a whole step of its sign.
    """
    assert found.keys() >= expected.keys() - {"lm_head.weight"}  # which tied embeddings are, under another name
    for name, weights in found.items():
        moved, apart = (expected[name] - start[name]).norm(), (weights - expected[name]).norm()
        assert moved > 0, f"{name} was not trained"
        assert apart <= 0.01 * moved, f"{name} moved by {moved:.3g} and is {apart:.3g} off"


def _weights(model: nn.Module, full_weights: bool) -> dict[str, Tensor]:
    weights = sharding.whole_weights(model) if full_weights else lora.tensors(model)
    return {name: tensor.clone() for name, tensor in weights.items()}


class _Watched(Optimizer):
    """Keeps the gradients of every step; on the leader, as all sums of parts are."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__(parameters)
        self.gradients: list[dict[str, Tensor]] = []

    def step(self, learning_rate: float) -> Tensor:
        gradients = {name: kept.parameter.grad for name, kept in self._kept.items()}
        whole = sharding.on_leader({name: gradient for name, gradient in gradients.items() if gradient is not None})
        self.gradients.append({name: gradient.clone() for name, gradient in whole.items()})
        return super().step(learning_rate)
