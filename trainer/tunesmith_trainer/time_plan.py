"""Owns how long a training run will take, told from shapes, tokens and the speed of its machine.
Must not know memory or the control plane. Pure."""

from collections.abc import Sequence

from tunesmith_trainer.base_shapes import BaseShapes
from tunesmith_trainer.config import TrainingConfig
from tunesmith_trainer.data import indices_of_step
from tunesmith_trainer.example import Example, labelled_tokens
from tunesmith_trainer.packing import pack

# Operations per multiplied parameter and token, forward and backward; frozen weights get no gradient of their own.
_FORWARD, ADAPTERS, FULL = 2, 4, 6
# Share of a probe's speed that products reach in steps; on a GPU that whole steps reach, the usual share of what the
# maker gives, not measured here.
_EFFICIENCY = {False: 0.85, True: 0.35}
# What a processor spends between products, for each number that enters or leaves one, forward and back: as much in
# bfloat16 as in float32, so that there products are a small part of a step. Both from SmolLM2-135M on two cores, not
# compiled: a step of 1,005 tokens took 2.4 s in float32 (products at 418 GFLOP/s) and 1.5 s in bfloat16 (2,500), with
# full weights 2.9 s and 1.6 s.
_SECONDS_PER_NUMBER = {False: 4e-9, True: 0.0}
_START_SECONDS = 12.0
_SAVE_SECONDS_PER_PARAMETER = 4e-8  # two loads in float32 and the upload
_SAVE_SECONDS = 2.0
# Of an offloaded step, for each weight: a float32 gradient goes to main memory and two bytes of weight come back, not
# pinned and thus at about 6 GB/s; AdamW reads four and writes three float32 numbers there at about 100 GB/s.
_OFFLOADED_SECONDS_PER_WEIGHT = (4 + 2) / 6e9 + (4 + 3) * 4 / 100e9
# What `four_bit_linear.restore` reads and writes for each weight: codes to int32 2.5, both levels 6, scaled 8, cast 6.
_RESTORED_BYTES = 22.5
# How often a device multiplies in the time in which it moves a byte: GPUs 80 (RTX 3090) to 400 (L4), by what their
# makers give; a processor of some 400 GFLOP/s has some 20 GB/s.
_OPERATIONS_PER_BYTE = {False: 20, True: 200}
_LOOKED_AT = 4  # steps: enough to see how much of a step begins as the rest of it does


def computed_part(
    shapes: BaseShapes, config: TrainingConfig, training: Sequence[Example], pack_tokens: int, *, gpu: bool
) -> float:
    """Of the tokens of a step, the part that is computed: where packs of so many tokens share prefixes, not all.

    Told from the first steps of the run, so that it is the same in each of its attempts.
    """
    if gpu:
        return 1.0
    computed = tokens = 0
    for step in range(1, min(_LOOKED_AT, config.total_steps) + 1):
        chosen = indices_of_step(len(training), config.batch_size, config.seed, step)
        rows = [training[index] for index in chosen]
        for batch in pack(rows, pack_tokens, share_up_to=shapes.share_up_to, apart=config.by_document):
            computed += len(batch.token_ids)
            tokens += batch.tokens
    return computed / tokens


def expected_seconds(
    shapes: BaseShapes,
    config: TrainingConfig,
    training: Sequence[Example],
    evaluation: Sequence[Example],
    flops: float,
    *,
    gpu: bool,
    pack_tokens: int,
    recomputed_layers: int = 0,
    offloaded: bool = False,
    in_four_bits: bool = False,
    part: float = 1.0,
) -> float:
    """Seconds from the start of the run to its end, on a machine that multiplies at `flops` operations per second.

    The last ones say how a step is computed, see `memory_ladder.Rung`; `part` of all tokens is, see `computed_part`.
    """
    per_parameter = (FULL if config.full_weights else ADAPTERS) + _FORWARD * recomputed_layers / shapes.layers
    work = config.n_epochs * operations(shapes, training, per_parameter)
    # The base and the end of each pass on all evaluation rows.
    work += (1 + config.n_epochs) * operations(shapes, evaluation, _FORWARD)
    if config.method == "dpo":
        work += operations(shapes, training, _FORWARD)  # what the base gives the answers
    between = _SECONDS_PER_NUMBER[gpu] * _numbers(shapes) * _tokens_both_ways(config, training, evaluation)
    work, between = work * part, between * part
    saves = config.n_epochs * (_SAVE_SECONDS + shapes.parameters * _SAVE_SECONDS_PER_PARAMETER)
    seconds = _START_SECONDS + saves + between + work / (flops * _EFFICIENCY[gpu])
    if offloaded:
        seconds += config.total_steps * shapes.parameters * _OFFLOADED_SECONDS_PER_WEIGHT
    if in_four_bits:
        tokens = config.n_epochs * sum(len(example.token_ids) for example in training) * part
        batches = max(config.total_steps, tokens / pack_tokens)
        times = 2 + recomputed_layers / shapes.layers  # forward, back, and where layers are computed twice
        seconds += batches * times * shapes.multiplied * _RESTORED_BYTES * _OPERATIONS_PER_BYTE[gpu] / flops
    return seconds


def operations(shapes: BaseShapes, examples: Sequence[Example], per_parameter: float) -> float:
    """Products of layers on every token, of the head on labelled ones, and of attention on pairs of tokens.

    `per_parameter`: operations for one parameter and token, 6 where it learns, forward and backward.
    """
    tokens = sum(len(example.token_ids) for example in examples)
    labelled = labelled_tokens(examples)
    pairs = sum(len(example.token_ids) ** 2 for example in examples) / 2
    attention = 2 * per_parameter / _FORWARD * pairs * shapes.queries * shapes.layers * _FORWARD
    return per_parameter * (tokens * shapes.multiplied + labelled * shapes.vocabulary * shapes.hidden) + attention


def _numbers(shapes: BaseShapes) -> int:
    """That enter or leave the products of all layers, for one token."""
    return sum(out + inner for out, inner in shapes.linears.values())


def _tokens_both_ways(config: TrainingConfig, training: Sequence[Example], evaluation: Sequence[Example]) -> float:
    """Tokens that pass forward and back; one that only passes forward counts half."""
    trained, evaluated = (sum(len(one.token_ids) for one in examples) for examples in (training, evaluation))
    asked = trained if config.method == "dpo" else 0
    return config.n_epochs * trained + ((1 + config.n_epochs) * evaluated + asked) / 2
