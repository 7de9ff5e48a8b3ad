"""Owns one training run for a measurement of quality: the trainer's own parts, its own choice of every number.
Must not know what is measured."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tunesmith_trainer import allocator, lora
from tunesmith_trainer.base_model import read_facts
from tunesmith_trainer.checkpoint import Progress
from tunesmith_trainer.config import TrainingConfig, Wanted
from tunesmith_trainer.data import Row, read_rows
from tunesmith_trainer.evaluation import RowScore, evaluate
from tunesmith_trainer.loop import Loop, Metrics
from tunesmith_trainer.model import Hardware, load
from tunesmith_trainer.optim import Optimizer
from tunesmith_trainer.preflight import prepare
from tunesmith_trainer.rendering import Example, Renderer, load_tokenizer


@dataclass(frozen=True, slots=True)
class Tuned:
    """A trained model, the numbers that it was trained with, and the seconds that the steps took."""

    model: nn.Module
    config: TrainingConfig
    seconds: float


class _Host:
    """Saves nothing and never stops the run."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def check(self) -> None:
        """Never stops the run."""

    def step_done(self, metrics: Metrics, remaining_seconds: float) -> bool:
        """Adds up the seconds."""
        self.seconds += metrics.seconds
        return False

    def evaluating(self, step: int) -> None:
        """Told to nobody."""

    def save(self, progress: Progress, metrics: Metrics) -> None:
        """Nothing is kept."""


def tune(base: Path, rows: Path, wanted: Wanted, hardware: Hardware) -> Tuned:
    """Trains a fresh copy of the base on all `rows` but those that the trainer holds out."""
    allocator.keep_freed_memory()
    prepared = prepare(base, rows, None, wanted)
    config = prepared.config
    model = load(base, hardware)
    if not config.full_weights:
        lora.attach(model, config.lora_rank, config.lora_alpha, config.seed)
    host = _Host()
    optimizer = Optimizer(model.named_parameters())
    loop = Loop(model, optimizer, config, prepared.training, prepared.evaluation, hardware.pack_tokens, host)
    loop.run(Progress(0, 0, hardware.dtype, []))
    return Tuned(model, config, host.seconds)


def rendered(base: Path, rows: Path) -> list[Example]:
    """All rows of a file as the trainer renders them."""
    tokenizer = load_tokenizer(base)
    renderer = Renderer(tokenizer, read_facts(base, tokenizer.eos_token_id).stop_ids)
    read = [row for row in read_rows(rows, "training_file") if isinstance(row, Row)]
    return [one for one in renderer.render_all(read) if isinstance(one, Example)]


def scores(model: nn.Module, examples: list[Example], hardware: Hardware) -> list[RowScore]:
    """What the model makes of rows; a row is exact when its greedy answer is the label."""
    return evaluate(model, examples, hardware.pack_tokens, lambda: None)
