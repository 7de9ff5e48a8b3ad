"""Owns one training run for a measurement of quality: the trainer's own parts, its own choice of every number.
Must not know what is measured."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tests.support.onlooker import Onlooker
from tunesmith_trainer import allocator, lora
from tunesmith_trainer.checkpoint import Progress
from tunesmith_trainer.config import TrainingConfig, Wanted
from tunesmith_trainer.evaluation import RowScore, evaluate
from tunesmith_trainer.example import Example
from tunesmith_trainer.loop import Loop, Metrics
from tunesmith_trainer.model import Hardware, load
from tunesmith_trainer.optim import Optimizer
from tunesmith_trainer.preflight import prepare

_MOST_MEMORY = 5 << 30  # about what a job plans for this model with full weights


@dataclass(frozen=True, slots=True)
class Tuned:
    """A trained model, the numbers that it was trained with, and the seconds that the steps took."""

    model: nn.Module
    config: TrainingConfig
    seconds: float


def tune(base: Path, rows: Path, wanted: Wanted, hardware: Hardware) -> Tuned:
    """Trains a fresh copy of the base on all `rows` but those that the trainer holds out."""
    allocator.keep_freed_memory()
    prepared = prepare(base, rows, None, wanted)
    config = prepared.config
    model = load(base, hardware)
    if not config.full_weights:
        lora.attach(model, config.lora_rank, config.lora_alpha, config.seed)
    host = _Narrator(config.total_steps)
    optimizer = Optimizer(model.named_parameters())
    loop = Loop(model, optimizer, config, prepared.training, prepared.evaluation, hardware.pack_tokens, host)
    loop.run(Progress(0, 0, hardware.dtype, []))
    return Tuned(model, config, sum(metrics.seconds for metrics in host.metrics))


def scores(model: nn.Module, examples: list[Example], hardware: Hardware) -> list[RowScore]:
    """What the model makes of rows; a row is exact when its greedy answer is the label."""
    return evaluate(model, examples, hardware.pack_tokens, lambda: None)


class _Narrator(Onlooker):
    """Tells on standard error once a minute how far the run is, since it may take most of an hour."""

    def __init__(self, total_steps: int) -> None:
        super().__init__()
        self._total = total_steps
        self._told = time.monotonic()

    def check(self) -> None:
        allocator.give_back(_MOST_MEMORY)

    def step_done(self, metrics: Metrics, remaining_seconds: float) -> bool:
        if time.monotonic() - self._told > 60:
            self._told = time.monotonic()
            told = f"step {metrics.step} of {self._total}, loss {metrics.train_loss:.3f}"
            print(f"{told}, {remaining_seconds / 60:.0f} min left", file=sys.stderr, flush=True)
        return super().step_done(metrics, remaining_seconds)
