"""Owns what a method of tuning asks of loop and evaluation: what a step minimises, and how rows are measured.
Must not know optimizers, files or the control plane."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import nn

from tunesmith_trainer.config import TrainingConfig
from tunesmith_trainer.evaluation import RowScore, evaluate
from tunesmith_trainer.example import Example
from tunesmith_trainer.objectives import Scored, score
from tunesmith_trainer.packing import Pack
from tunesmith_trainer.preference import PreferenceObjective


class Objective(Protocol):
    """What a step minimises, and how rows are measured."""

    def observe_base(
        self, model: nn.Module, examples: Sequence[Example], pack_tokens: int, after_pack: Callable[[], None]
    ) -> None:
        """Called with the examples of each kind while the model is still the base; `after_pack` as in `evaluate`."""

    def count(self, batch: Pack) -> int:
        """How many losses the pack adds to the mean of its step."""

    def score(self, model: nn.Module, batch: Pack, examples: Sequence[Example]) -> Scored:
        """Runs the model over a pack of these examples: `count` losses and hits, and their sum to differentiate."""

    def evaluate(
        self, model: nn.Module, examples: Sequence[Example], pack_tokens: int, after_pack: Callable[[], None]
    ) -> list[RowScore]:
        """Measures every example, in order. `after_pack` is called between packs and may raise to stop."""


def objective_of(config: TrainingConfig) -> Objective:
    """What the job's method minimises."""
    return PreferenceObjective(config.beta) if config.method == "dpo" else TokenObjective()


class TokenObjective:
    """Cross-entropy of the labelled tokens: supervised tuning and continued pretraining differ in their labels only."""

    def observe_base(
        self, model: nn.Module, examples: Sequence[Example], pack_tokens: int, after_pack: Callable[[], None]
    ) -> None:
        """Needs nothing of the base."""

    def count(self, batch: Pack) -> int:
        """Labelled tokens."""
        return len(batch.targets)

    def score(self, model: nn.Module, batch: Pack, examples: Sequence[Example]) -> Scored:
        """See Objective."""
        return score(model, batch)

    def evaluate(
        self, model: nn.Module, examples: Sequence[Example], pack_tokens: int, after_pack: Callable[[], None]
    ) -> list[RowScore]:
        """See Objective."""
        return evaluate(model, examples, pack_tokens, after_pack)
