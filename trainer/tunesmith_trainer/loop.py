"""Owns the training loop: steps, their numbers, when to validate, when to save.
Must not know files, URLs or the wire; `Host` is all it sees of the world."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from tunesmith_trainer import distributed, sharding
from tunesmith_trainer.checkpoint import Progress
from tunesmith_trainer.config import TrainingConfig, learning_rate_at
from tunesmith_trainer.data import indices_of_step
from tunesmith_trainer.device_copies import Readout
from tunesmith_trainer.errors import BadData, Problem
from tunesmith_trainer.evaluation import Measured, RowScore, evaluate, summarise
from tunesmith_trainer.example import Example
from tunesmith_trainer.methods import Objective, TokenObjective
from tunesmith_trainer.objectives import pack_for, score_nothing
from tunesmith_trainer.optim import Optimizer
from tunesmith_trainer.packing import Pack

_VALIDATIONS_PER_RUN = 20
_LEAST_STEPS_BETWEEN_VALIDATIONS = 5
_GLANCE_TOKENS = 512  # whatever the size of a pack: the rows glanced at must not change with it
_NAMED_ROWS = 20


@dataclass(frozen=True, slots=True)
class Metrics:
    """Numbers of one step, as the contract names them: losses in nats per labelled token, accuracies 0 to 1."""

    step: int
    train_loss: float
    train_mean_token_accuracy: float
    learning_rate: float
    tokens: int
    seconds: float
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class Host(Protocol):
    """What the loop needs from around it. Every method may raise to stop the run."""

    def check(self) -> None:
        """Called between micro-batches."""

    def step_done(self, metrics: Metrics, remaining_seconds: float) -> bool:
        """Called after each step. True asks to save now."""

    def evaluating(self, step: int) -> None:
        """Called before an evaluation at the end of a pass."""

    def save(self, progress: Progress, metrics: Metrics) -> None:
        """Saves and commits a checkpoint."""


@dataclass(frozen=True, slots=True)
class Trained:
    """Where the loop ended, and what the model scored whose checkpoint is to be the result.

    That is the last one, or where the run may stop early, the one with the best validation loss.
    """

    progress: Progress
    chosen: Measured


@dataclass(frozen=True, slots=True)
class _Taken:
    """An optimizer step that was taken. `sums` are its losses, its hits and its gradient's norm, maybe on their way."""

    step: int
    examples: list[Example]
    counted: int
    tokens: int
    learning_rate: float
    started: float
    sums: Readout


@dataclass(frozen=True, slots=True)
class _Share:
    """A rank's part of a step. Members of the packs are indices into `examples`."""

    examples: list[Example]
    packs: list[Pack]


class Loop:
    """Trains a model, which is changed in place, from `progress` to the last step.

    So that a GPU need not wait for whoever reads a step's numbers, they may be read when `steps_ahead` further steps
    are under way. Whatever is measured, saved or reported is as it would be without.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        config: TrainingConfig,
        training: Sequence[Example],
        evaluation: Sequence[Example],
        pack_tokens: int,
        host: Host,
        clock: Callable[[], float] = time.perf_counter,
        objective: Objective | None = None,
        guard: Sequence[Example] = (),
        steps_ahead: int = 0,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._config = config
        self._training = training
        self._evaluation = evaluation
        self._pack_tokens = pack_tokens
        self._host = host
        self._clock = clock
        self._objective = objective or TokenObjective()
        self._guard = guard
        self._steps_ahead = steps_ahead
        self._read_at = -math.inf
        self._glance = _within(evaluation, _GLANCE_TOKENS)
        self._validate_every = max(_LEAST_STEPS_BETWEEN_VALIDATIONS, config.total_steps // _VALIDATIONS_PER_RUN)

    def run(self, progress: Progress) -> Trained:
        """Runs the remaining steps; saves at the end of each pass and whenever the host asks.

        Raises BadData when a loss or a gradient is not a finite number; nothing that came of it is saved.
        """
        spent: list[float] = []
        rows: list[RowScore] = []
        taken: list[_Taken] = []
        asked = False
        history = list(progress.history)  # grows in place: copying it at every step would cost ever more
        while not self._is_over(progress):
            if self._may_go_ahead(taken, asked=asked):
                taken.append(self._take(progress.step + len(taken) + 1))
                continue
            metrics = self._numbers_of(taken.pop(0))
            step = metrics.step
            spent.append(metrics.seconds)
            pass_ends = step % self._config.steps_per_pass == 0
            if step % self._validate_every == 0 and not pass_ends:
                metrics = _with_glance(metrics, self._measure(self._glance))
            best = progress.best
            if pass_ends:
                self._host.evaluating(step)
                rows = self._evaluate()
                metrics = _with_full_validation(_with_glance(metrics, rows[: len(self._glance)]), rows)
                if not math.isfinite(metrics.full_valid_loss or 0.0):
                    raise _not_finite(step, [])
                best = self._better(best, step, rows)
            history.append(asdict(metrics))
            tokens = progress.trained_tokens + metrics.tokens
            progress = replace(progress, step=step, trained_tokens=tokens, history=history, best=best)
            asked |= self._host.step_done(metrics, _remaining(spent, self._config.total_steps - step))
            if not taken and (pass_ends or asked):
                self._host.save(progress, metrics)
                asked = False
        chosen = progress.best or Measured(progress.step, rows or self._evaluate(), self._ask_guard())
        return Trained(progress, chosen)

    def _may_go_ahead(self, taken: Sequence[_Taken], *, asked: bool) -> bool:
        """Whether to take the next step before reading the oldest one's numbers: never past a step after which the
        model is looked at or saved."""
        if not taken:
            return True
        step, config = taken[-1].step, self._config
        looked_at = step % config.steps_per_pass == 0 or step % self._validate_every == 0 or step == config.total_steps
        return len(taken) <= self._steps_ahead and not looked_at and not asked

    def _is_over(self, progress: Progress) -> bool:
        """After the last step, or when enough passes have ended since the best one."""
        patience, best = self._config.early_stopping_patience, progress.best
        if patience is None or best is None or progress.step == self._config.total_steps:
            return progress.step == self._config.total_steps
        return (progress.step - best.step) // self._config.steps_per_pass >= patience

    def _better(self, best: Measured | None, step: int, rows: list[RowScore]) -> Measured | None:
        """The better one of the best pass so far and this one, the earlier where they are equal."""
        if self._config.early_stopping_patience is None:
            return None
        if best is not None and summarise(best.rows).loss <= summarise(rows).loss:
            return best
        return Measured(step, rows, self._ask_guard())

    def _take(self, step: int) -> _Taken:
        """One optimizer step: the mean over all that its objective counts, however it falls into packs."""
        started = self._clock()
        config = self._config
        chosen = indices_of_step(len(self._training), config.batch_size, config.seed, step)
        examples = [self._training[index] for index in chosen]
        shares = self._shares(examples)
        packs = [batch for share in shares for batch in share.packs]
        counted = sum(self._objective.count(batch) for batch in packs)
        sums = self._learn(shares, counted)
        rate = learning_rate_at(config, step)
        sharding.sum_gradients(self._model)
        norm = self._optimizer.step(rate)
        distributed.sum_up([sums])
        tokens = sum(batch.tokens for batch in packs)
        return _Taken(step, examples, counted, tokens, rate, started, Readout(torch.cat([sums, norm.double()[None]])))

    def _numbers_of(self, taken: _Taken) -> Metrics:
        """Raises BadData when they are not numbers."""
        losses, hits, norm = taken.sums.read()
        if not math.isfinite(losses) or not math.isfinite(norm):
            raise _not_finite(taken.step, taken.examples)
        before, self._read_at = self._read_at, self._clock()
        return Metrics(
            step=taken.step,
            train_loss=losses / taken.counted,
            train_mean_token_accuracy=hits / taken.counted,
            learning_rate=taken.learning_rate,
            tokens=taken.tokens,
            seconds=self._read_at - max(taken.started, before),
        )

    def _shares(self, examples: Sequence[Example]) -> list[_Share]:
        """What each rank learns of a step; every rank knows all of it."""
        hands = distributed.deal([len(example.token_ids) for example in examples], distributed.size())
        dealt = ([examples[index] for index in hand] for hand in hands)
        return [_Share(chosen, self._packed(chosen)) for chosen in dealt]

    def _packed(self, examples: Sequence[Example]) -> list[Pack]:
        return pack_for(self._model, examples, self._pack_tokens, apart=self._config.by_document)

    def _learn(self, shares: Sequence[_Share], counted: int) -> Tensor:
        """Adds the gradients of this rank's share of the step's mean. Returns the sums of its losses and hits (2,)."""
        own = shares[distributed.rank()]
        losses: list[Tensor] = []
        hits: list[Tensor] = []
        for batch in own.packs:
            scored = self._objective.score(self._model, batch, own.examples)
            (scored.total / counted).backward()  # type: ignore[no-untyped-call]  # torch
            losses.append(scored.total.detach())
            hits.append(scored.hits.sum())
            self._host.check()
        for _ in range(max(len(share.packs) for share in shares) - len(own.packs)):
            score_nothing(self._model).backward()  # type: ignore[no-untyped-call]  # torch
        if not own.packs:
            return torch.zeros(2, dtype=torch.float64, device=next(self._model.parameters()).device)
        return torch.stack([torch.stack(each).sum().double() for each in (losses, hits)])

    def _evaluate(self) -> list[RowScore]:
        return self._measure(self._evaluation)

    def _ask_guard(self) -> list[RowScore]:
        return evaluate(self._model, self._guard, self._pack_tokens, self._host.check)

    def _measure(self, examples: Sequence[Example]) -> list[RowScore]:
        return self._objective.evaluate(self._model, examples, self._pack_tokens, self._host.check)


def _within(examples: Sequence[Example], tokens: int) -> list[Example]:
    """The first examples that fit into `tokens`, at least one."""
    chosen = [examples[0]]
    room = tokens - len(examples[0].token_ids)
    for example in examples[1:]:
        room -= len(example.token_ids)
        if room < 0:
            break
        chosen.append(example)
    return chosen


def _with_glance(metrics: Metrics, scores: Sequence[RowScore]) -> Metrics:
    """With loss and token accuracy on the first few evaluation rows: cheap enough to measure often."""
    glance = summarise(scores)
    return replace(metrics, valid_loss=glance.loss, valid_mean_token_accuracy=glance.token_accuracy)


def _with_full_validation(metrics: Metrics, scores: Sequence[RowScore]) -> Metrics:
    full = summarise(scores)
    return replace(metrics, full_valid_loss=full.loss, full_valid_mean_token_accuracy=full.token_accuracy)


def _not_finite(step: int, examples: Sequence[Example]) -> BadData:
    """What ends a run whose numbers got out of hand: the same steps would lead there again."""
    rows = sorted({example.row for example in examples})
    named = ", ".join(map(str, rows[:_NAMED_ROWS])) + (", …" if len(rows) > _NAMED_ROWS else "")
    learnt = f"its rows are {named}. Look at them, or choose" if rows else "on the evaluation rows. Choose"
    message = (
        f"The loss of step {step} is not a finite number; {learnt} a learning_rate_multiplier below 1. "
        "The checkpoints from before can be used."
    )
    return BadData(Problem("loss_not_finite", message, "training_file", rows[0] if rows else None))


def _remaining(spent: Sequence[float], steps: int) -> float:
    """Seconds that `steps` more steps will take, from the latest twenty."""
    latest = spent[-20:]
    return steps * sum(latest) / len(latest)
