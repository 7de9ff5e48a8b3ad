"""Owns how long a training run will take, told from shapes, tokens and the speed of its machine.
Must not know memory or the control plane. Pure."""

from collections.abc import Sequence

from tunesmith_trainer.base_shapes import BaseShapes
from tunesmith_trainer.config import TrainingConfig
from tunesmith_trainer.rendering import Example

# Operations per multiplied parameter and token, forward and backward; frozen weights get no gradient of their own.
_FORWARD, _ADAPTERS, _FULL = 2, 4, 6
# Share of a probe's speed that whole steps reach. On a processor from SmolLM2-135M in float32 on one thread: 57 of
# 120 GFLOP/s with LoRA, 55 with full weights; on a GPU the usual share of what the maker gives, not measured here.
_EFFICIENCY = {False: 0.48, True: 0.35}
_START_SECONDS = 12.0
_SAVE_SECONDS_PER_PARAMETER = 4e-8  # two loads in float32 and the upload
_SAVE_SECONDS = 2.0


def expected_seconds(
    shapes: BaseShapes,
    config: TrainingConfig,
    training: Sequence[Example],
    evaluation: Sequence[Example],
    flops: float,
    *,
    gpu: bool,
    recomputed_layers: int = 0,
) -> float:
    """Seconds from the start of the run to its end, on a machine that multiplies at `flops` operations per second."""
    per_parameter = (_FULL if config.full_weights else _ADAPTERS) + _FORWARD * recomputed_layers / shapes.layers
    work = config.n_epochs * _operations(shapes, training, per_parameter)
    # The base and the end of each pass on all evaluation rows.
    work += (1 + config.n_epochs) * _operations(shapes, evaluation, _FORWARD)
    if config.method == "dpo":
        work += _operations(shapes, training, _FORWARD)  # what the base gives the answers
    saves = config.n_epochs * (_SAVE_SECONDS + shapes.parameters * _SAVE_SECONDS_PER_PARAMETER)
    return _START_SECONDS + saves + work / (flops * _EFFICIENCY[gpu])


def _operations(shapes: BaseShapes, examples: Sequence[Example], per_parameter: float) -> float:
    """Products of layers on every token, of the head on labelled ones, and of attention on pairs of tokens."""
    tokens = sum(len(example.token_ids) for example in examples)
    labelled = sum(int(example.labelled.sum()) for example in examples)
    pairs = sum(len(example.token_ids) ** 2 for example in examples) / 2
    attention = 2 * per_parameter / _FORWARD * pairs * shapes.queries * shapes.layers * _FORWARD
    return per_parameter * (tokens * shapes.multiplied + labelled * shapes.vocabulary * shapes.hidden) + attention
