"""Owns the ladder of ways to compute a step with less and less memory, and on which of its rungs a run starts.
Must not know weights, processes or the control plane. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from tunesmith_trainer.base_shapes import BaseShapes
from tunesmith_trainer.config import TrainingConfig
from tunesmith_trainer.errors import BadSpec, OutOfMemory, Problem, RunFailed
from tunesmith_trainer.example import Example
from tunesmith_trainer.memory_plan import LargestStep, Plan, gib, largest_step, offloaded_bytes, plan
from tunesmith_trainer.time_plan import computed_part

# Share of the free memory that a run may be expected to need: the plan is a prediction. On a GPU nobody else takes a
# little now and then, and to fall back once costs less than a rung that is lower than needed.
_TIGHT, _TIGHT_ON_GPU = 0.9, 0.95
_ROOM_TO_SHARE = 2  # longest rows: one whole, and its length of what further ones do not share with it
_WORTH_MEMORY = 0.1  # of all tokens, not computed: what larger packs should save at least
_LEAST_PACK_TOKENS = 256  # smaller packs save little and keep no device busy


@dataclass(frozen=True, slots=True)
class Rung:
    """How a step is computed; what comes of it is the same on every rung, up to rounding.

    Micro-batches have at most `pack_tokens` tokens. The first `recomputed_layers` decoder layers are computed again in
    the backward pass, so that only their inputs are kept. An optimizer that is `offloaded` lies and steps in main
    memory. With the base `in_four_bits` adapters learn what they would on the whole weights only nearly.
    """

    pack_tokens: int
    recomputed_layers: int = 0
    offloaded: bool = False
    in_four_bits: bool = False

    def __str__(self) -> str:
        parts = [f"packs of {self.pack_tokens} tokens"]
        if self.recomputed_layers:
            parts.append(f"{self.recomputed_layers} layers computed twice")
        if self.offloaded:
            parts.append("the optimizer in main memory")
        if self.in_four_bits:
            parts.append("the base in four bits")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Choice:
    """The rung that a run starts on, what it is expected to need there, and why; `lower` is the next one, if any."""

    rung: Rung
    need: Plan
    reason: str
    lower: Rung | None


class Ladder:
    """Rungs with what a run of given shapes, rows and numbers needs on each.

    `tight` is the share of the free memory that it may be expected to need.
    """

    def __init__(
        self, rungs: Sequence[Rung], need_of: Callable[[Rung], Plan], *, full_weights: bool, gpu: bool
    ) -> None:
        self.tight = _TIGHT_ON_GPU if gpu else _TIGHT
        self._rungs = list(rungs)
        self._needs = [need_of(rung) for rung in rungs]
        self._full_weights = full_weights

    @property
    def least(self) -> Plan:
        """What is needed where least is."""
        return min(self._needs, key=lambda need: need.needed)

    @property
    def advice(self) -> str:
        """What helps where the ladder does not."""
        smaller = "training.weights lora" if self._full_weights else "a smaller lora_rank"
        return f"Use shorter rows, {smaller}, a smaller base model or a device with more memory"

    def choose(self, available: int, capacity: int, *, kept: Rung | None = None, failures: int = 0) -> Choice:
        """The first rung that fits into the bytes that are `available`; where none does, the first that needs least.

        A resumed run stays on the rung that it was saved on, `kept`, if that fits into the device's whole `capacity`:
        what is free at the moment must not change its numbers. Each of `failures`, attempts that ran out of memory
        there, leads one rung further down. Raises BadSpec when there is none.
        """
        first, reason = self._first(available, capacity, kept)
        if failures:
            reason = f"{failures} attempt{'s' * (failures > 1)} ran out of memory"
        index = first + failures
        if index >= len(self._rungs):
            raise self._exhausted()
        lower = self._rungs[index + 1] if index + 1 < len(self._rungs) else None
        return Choice(self._rungs[index], self._needs[index], reason, lower)

    def out_of_memory(self, choice: Choice) -> RunFailed:
        """How a run ends whose memory did not last: OutOfMemory, or BadSpec where nothing smaller is left."""
        if choice.lower is None:
            return self._exhausted()
        message = f"The device ran out of memory with {choice.rung}; the next attempt takes {choice.lower}."
        return OutOfMemory(Problem("out_of_memory", message))

    def _first(self, available: int, capacity: int, kept: Rung | None) -> tuple[int, str]:
        """Where the ladder is entered, and why."""
        if kept in self._rungs and self._needs[self._rungs.index(kept)].needed <= capacity:
            return self._rungs.index(kept), "as before the run was resumed"
        free = f"of {gib(available)} free"
        for index, need in enumerate(self._needs):
            if need.needed <= available * self.tight:
                why = f"{gib(need.needed)} {free} are needed"
                more = f", {self._rungs[index - 1]} would need {gib(self._needs[index - 1].needed)}" if index else ""
                return index, why + more
        index = self._needs.index(self.least)
        return index, f"{gib(self.least.needed)} {free} are needed, and nothing needs less"

    def _exhausted(self) -> BadSpec:
        message = f"The device ran out of memory, and there is no way left that needs less. {self.advice}."
        return BadSpec(Problem("out_of_memory", message, "training_file"))


def ladder_of(
    shapes: BaseShapes,
    config: TrainingConfig,
    training: Sequence[Example],
    evaluation: Sequence[Example],
    dtype: str,
    pack_tokens: int,
    *,
    main_memory: int,
    gpu: bool,
    merged: bool,
    ranks: int = 1,
) -> Ladder:
    """The ladder of a run over these rows on so many ranks; the fastest packs are of `pack_tokens`.

    On a processor they are larger where that lets long rows share what they begin with. `main_memory` is all that the
    machine has, in bytes. Adapters that are `merged` into the weights they are served in need these as they are.
    """
    examples = [*training, *evaluation]

    @cache
    def step_of(tokens: int) -> LargestStep:
        return largest_step(shapes, config, examples, tokens, gpu=gpu)

    @cache
    def need_of(rung: Rung) -> Plan:
        return plan(
            shapes,
            config,
            step_of(rung.pack_tokens),
            dtype,
            gpu=gpu,
            recomputed_layers=rung.recomputed_layers,
            offloaded=rung.offloaded,
            in_four_bits=rung.in_four_bits,
            ranks=ranks,
        )

    longest = _longest_together(config, examples)
    larger = _ROOM_TO_SHARE * longest
    if larger > pack_tokens:
        parts = (computed_part(shapes, config, training, tokens, gpu=gpu) for tokens in (pack_tokens, larger))
        saved = next(parts) - next(parts)
        pack_tokens = larger if saved > _WORTH_MEMORY else pack_tokens
    ways = rungs(pack_tokens, longest, shapes.layers)
    further: list[Rung] = []
    if config.full_weights and gpu and ranks == 1:  # several devices share the optimizer instead
        if offloaded_bytes(shapes) <= main_memory * _TIGHT:
            further = [replace(way, offloaded=True) for way in ways]
    elif not config.full_weights and not merged:
        further = [replace(way, in_four_bits=True) for way in ways]
    least = min(need_of(way).needed for way in ways)
    further = [way for way in further if need_of(way).needed < least]
    return Ladder([*ways, *further], need_of, full_weights=config.full_weights, gpu=gpu)


def rungs(pack_tokens: int, longest: int, layers: int) -> list[Rung]:
    """From the fastest to the smallest, with weights and optimizer as they are.

    Halved packs cost little; layers that are computed twice cost up to half as much again, so that they come after:
    half of them, then all. Rows are not split, so that no pack is made smaller than the `longest` one, in tokens.
    """
    least = max(longest, _LEAST_PACK_TOKENS)
    sizes = [pack_tokens]
    while sizes[-1] > least:
        sizes.append(max(sizes[-1] // 2, least))
    return [*(Rung(size) for size in sizes), *(Rung(sizes[-1], count) for count in sorted({-(-layers // 2), layers}))]


def _longest_together(config: TrainingConfig, examples: Sequence[Example]) -> int:
    """Tokens that have to be in one pack: of a pair of answers, or else of a document."""
    if config.by_document:
        return max(length for one in examples for length in one.documents)
    return max(len(one.token_ids) for one in examples)
