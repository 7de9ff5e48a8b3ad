"""Owns what a training run needs at its peak, in bytes, term by term, told from shapes and the longest rows.
Must not know the machine's memory or the control plane. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith_trainer.base_shapes import BaseShapes
from tunesmith_trainer.config import TrainingConfig
from tunesmith_trainer.example import Example
from tunesmith_trainer.four_bit_linear import BYTES_PER_WEIGHT
from tunesmith_trainer.head import rows_at_once
from tunesmith_trainer.optim import stepped_at_once
from tunesmith_trainer.packing import pack
from tunesmith_trainer.time_plan import computed_part

_BYTES = {"float32": 4, "bfloat16": 2}
_FULL = 4  # bytes of a float32
_LOWER = 2  # bytes of what a bfloat16 lacks of one
PROOF_ROOM = 1.2
"""Of its weights, that a model needs to answer."""
# Of scores that are bounded, for each pair of tokens and head: capped, softmaxed, and the gradients of both.
_BYTES_PER_SCORE = 4 * _FULL
# Of a window's mask on a processor, for each pair of tokens: as truths, their opposite, and numbers to add.
_BYTES_PER_PAIR = 6
# Between what is kept, main memory is left with gaps that the next large tensor does not fit into: measured, they come
# to three of the widest tensors of every layer, kept or not. GPUs' allocators sort by size.
_GAPS = 3
# Interpreter and libraries on a processor; context and workspaces on a GPU. Measured with an idle trainer.
_PROCESS = {False: 600 << 20, True: 800 << 20}


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes by name at the worst moment of a run."""

    terms: dict[str, int]

    @property
    def needed(self) -> int:
        """All of them."""
        return sum(self.terms.values())


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / (1 << 30):.1f} GiB"


@dataclass(frozen=True, slots=True)
class LargestStep:
    """Micro-batches of a step that happens to get the longest rows.

    The largest has so many `tokens`, and of all any may have so many `labels`; the longest document is of `longest`
    tokens. `is_one`: there is one micro-batch.
    """

    tokens: int
    labels: int
    longest: int
    is_one: bool


def largest_step(
    shapes: BaseShapes, config: TrainingConfig, examples: Sequence[Example], pack_tokens: int, *, gpu: bool
) -> LargestStep:
    """That of a run over these rows in packs of `pack_tokens` tokens."""
    rows = sorted(examples, key=lambda example: -len(example.token_ids))[: config.batch_size]
    packs = pack(rows, pack_tokens, apart=config.by_document)
    tokens = max(len(one.token_ids) for one in packs)
    labels = max(len(one.targets) for one in packs)
    if computed_part(shapes, config, examples, pack_tokens, gpu=gpu) < 1:
        # Rows that share what they begin with may fill any pack, and bring more labels.
        tokens = max(tokens, min(pack_tokens, sum(one.tokens for one in packs)))
        labels = sum(len(one.targets) for one in packs)
    return LargestStep(tokens, labels, max(max(one.lengths) for one in packs), len(packs) == 1)


def plan(
    shapes: BaseShapes,
    config: TrainingConfig,
    step: LargestStep,
    dtype: str,
    *,
    gpu: bool,
    recomputed_layers: int = 0,
    offloaded: bool = False,
    in_four_bits: bool = False,
    ranks: int = 1,
) -> Plan:
    """The largest of three moments: the backward pass of the largest step, its update, the proof after a checkpoint.

    The proof loads the model once more, in float32, while weights and optimizer stay where they are; of a run on a GPU
    it is made in main memory where the GPU has no room for it. Of the first `recomputed_layers` only the inputs are
    kept, until the backward pass comes to each. An `offloaded` optimizer is in main memory; a base `in_four_bits` is
    made whole layer by layer. With several `ranks` it is the leader's plan, and full weights are split among them; what
    is being computed with is there as a whole.
    """
    size = _BYTES[dtype]
    trained = shapes.parameters if config.full_weights else shapes.adapter_parameters(config.lora_rank)
    lower = trained * _LOWER if config.full_weights and dtype != "float32" else 0
    parts = ranks if config.full_weights else 1
    lasting = {
        "process": _PROCESS[gpu],
        "weights": _weights(shapes, size, in_four_bits=in_four_bits) // parts,
        "adapters": 0 if config.full_weights else trained * _FULL,
        "optimizer": 0 if offloaded else (2 * trained * _FULL + lower) // parts,
    }
    gradients = trained * (size if config.full_weights else _FULL)
    passing = {
        "activations": step.tokens * _bytes_per_token(shapes, config, size, recomputed_layers, gpu=gpu),
        "scores": shapes.capped_heads * step.longest**2 * _BYTES_PER_SCORE,
        "window": _window_mask(shapes, step.longest) if not gpu else 0,
        "gaps": 0 if gpu else step.tokens * shapes.layers * _GAPS * shapes.intermediate * size,
        "logits": _logits(shapes, config, step.labels, size, gpu=gpu),
        # While the first micro-batch goes back, its activations make room for the gradients.
        "gradients": 0 if step.is_one else gradients // parts,
        "gathered": _gathered(shapes) * size if parts > 1 else 0,
        "whole": _restored(shapes, size) if in_four_bits else 0,
    }
    stepped = 0 if offloaded or size == _FULL else _stepped(trained, gpu=gpu)
    update = {"gradients": gradients // parts, "update": stepped}
    proof = {} if gpu else {"proof": shapes.parameters * _FULL}
    moments = sorted((passing, update, proof), key=lambda moment: sum(moment.values()))
    terms = {**lasting, **moments[-1]}
    return Plan({name: terms[name] for name in sorted(terms, key=lambda name: -terms[name]) if terms[name]})


def offloaded_bytes(shapes: BaseShapes) -> int:
    """What an offloaded optimizer has in main memory: moments, float32 copies, and gradients in a step."""
    return 3 * shapes.parameters * _FULL + _stepped(shapes.parameters, gpu=True)


def checkpoint_bytes(shapes: BaseShapes, config: TrainingConfig, dtype: str, need: Plan, capacity: int) -> int:
    """Main memory that a run takes while it saves, on a GPU of so many bytes on which it needs as much as `need`.

    The proof's model is in main memory where the GPU has no room for it; trained weights and their optimizer's state
    pass through it as a whole.
    """
    lasting = sum(need.terms.get(name, 0) for name in ("process", "weights", "adapters", "optimizer"))
    proof = shapes.parameters * _FULL
    beside = 0 if lasting + PROOF_ROOM * proof <= capacity else proof
    lower = 0 if dtype == "float32" else _LOWER
    state = shapes.parameters * (_BYTES[dtype] + 2 * _FULL + lower) if config.full_weights else 0
    return _PROCESS[False] + beside + state


def _window_mask(shapes: BaseShapes, longest: int) -> int:
    """Of the longest document, where it is longer than the window."""
    return longest**2 * _BYTES_PER_PAIR if shapes.window is not None and longest > shapes.window else 0


def _stepped(trained: int, *, gpu: bool) -> int:
    """Gradients and numbers that there are in float32 at once while parameters are stepped."""
    return 2 * min(trained, stepped_at_once(gpu=gpu)) * _FULL


def _weights(shapes: BaseShapes, size: int, *, in_four_bits: bool) -> int:
    if not in_four_bits:
        return shapes.parameters * size
    return (shapes.parameters - shapes.multiplied) * size + int(shapes.multiplied * BYTES_PER_WEIGHT)


def _restored(shapes: BaseShapes, size: int) -> int:
    """The largest linear layer's weight made whole: looked up in float32 by codes of four bytes for two, then cast."""
    return max(out * width for out, width in shapes.linears.values()) * (_FULL // 2 + _FULL + size)


def _gathered(shapes: BaseShapes) -> int:
    """Parameters that a rank has whole at once: embeddings and head, a layer, and the next one on its way."""
    return shapes.parameters - shapes.multiplied + 2 * shapes.multiplied // shapes.layers


def _bytes_per_token(
    shapes: BaseShapes, config: TrainingConfig, size: int, recomputed_layers: int, *, gpu: bool
) -> int:
    """What the backward pass needs kept of the forward pass, for one token.

    Where all layers are computed again, one of them at a time is there as a whole. After the layers come the last norm
    and what the head makes of it.
    """
    per_layer = _bytes_per_layer(shapes, config, size, gpu=gpu)
    whole = max(shapes.layers - recomputed_layers, 1)
    return whole * per_layer + recomputed_layers * shapes.hidden * size + 2 * shapes.hidden * (_FULL + size)


def _bytes_per_layer(shapes: BaseShapes, config: TrainingConfig, size: int, *, gpu: bool) -> int:
    """For one token.

    Norms keep their input in float32, the two before attention and feed-forward layers their output; attention keeps
    queries, keys, values and its output, on a processor the latter once more where documents are joined; the gated
    layer keeps four tensors. Norms that learn keep their normalised input too, some families in float32.
    """
    norms = shapes.normed * _FULL + 2 * shapes.hidden * size
    keys = shapes.queries if gpu and size == _FULL else shapes.keys  # repeated for GPUs without flash attention
    attention = ((2 if gpu else 3) * shapes.queries + 2 * keys) * size
    gated = 4 * shapes.intermediate * size
    if config.full_weights:
        return norms + attention + gated + shapes.normed * _FULL
    return norms + attention + gated + len(shapes.linears) // shapes.layers * config.lora_rank * size


def _logits(shapes: BaseShapes, config: TrainingConfig, labels: int, size: int, *, gpu: bool) -> int:
    """Logits in float32 of so many labels with what is made of them, and the head's gradient where it learns."""
    rows = min(labels, rows_at_once(gpu=gpu))
    per_logit = 2 * _FULL + (2 * size if size != _FULL else 0)
    product = _FULL if gpu else size  # which joins the head's gradient
    gradient = shapes.vocabulary * shapes.hidden * (_FULL + product) if config.full_weights else 0
    return rows * shapes.vocabulary * per_logit + gradient
