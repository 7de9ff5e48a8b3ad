"""Owns what can be told of a base model from its small files: is it safe, is it supported, where does an answer stop.
Must not know torch, weights or where the folder came from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith_trainer.errors import Problem, UnsupportedModel

# Decoders that take our attention with all that it is told, and whose head is a product, at most capped.
SUPPORTED_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2")
# Those of them whose engines take no adapters: what a LoRA run learnt is served merged into the weights.
_SERVED_MERGED = frozenset({"gpt2"})
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so", ".h5", ".msgpack")
# GPT-2 has its own words for what the others call alike.
_HIDDEN_SIZE = ("hidden_size", "n_embd")
_VOCABULARY = ("vocab_size",)
_CONTEXT_LENGTH = ("max_position_embeddings", "n_positions")
_LARGEST = 1 << 31  # of any of these numbers
_HEADS = ("ForCausalLM", "LMHeadModel")
_UNSUPPORTED_SETTINGS = (
    ("vision_config", "it is multimodal; only text models are trained"),
    ("audio_config", "it is multimodal; only text models are trained"),
    ("is_encoder_decoder", "it is an encoder-decoder; only decoders are trained"),
    ("num_local_experts", "it is a mixture of experts; only dense models are trained"),
    ("num_experts", "it is a mixture of experts; only dense models are trained"),
    ("n_routed_experts", "it is a mixture of experts; only dense models are trained"),
    ("ssm_cfg", "it is a state-space model, whose state would leak from one packed row into the next"),
    ("state_size", "it is a state-space model, whose state would leak from one packed row into the next"),
    ("mamba_d_state", "it is a state-space model, whose state would leak from one packed row into the next"),
    ("quantization_config", "its weights are quantised; take the original weights"),
    ("add_cross_attention", "it attends to another model (add_cross_attention)"),
    ("use_bidirectional_attention", "its tokens see what comes after them (use_bidirectional_attention)"),
    ("scale_attn_by_inverse_layer_idx", "engines do not serve scale_attn_by_inverse_layer_idx"),
    ("reorder_and_upcast_attn", "engines do not serve reorder_and_upcast_attn"),
)
_LENGTH_DEPENDENT_ROPES = frozenset({"dynamic", "longrope", "su"})


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the run needs to know before it loads weights. Lengths are in tokens; `vocabulary` are those with weights.

    `served_merged`: engines take no adapters of this architecture.
    """

    model_type: str
    hidden_size: int
    vocabulary: int
    max_context_length: int
    stop_ids: tuple[int, ...]
    served_merged: bool


def read_facts(folder: Path, eos_token_id: int | None) -> ModelFacts:
    """Reads a model folder's configuration. Raises UnsupportedModel where training it would be unsafe or wrong."""
    refuse_unsafe(folder)
    config = _read_json(folder / "config.json")
    _refuse_architecture(config)
    vocabulary = _number(config, _VOCABULARY)
    stops = _stop_ids(folder, config, vocabulary) | ({eos_token_id} if eos_token_id is not None else set())
    return ModelFacts(
        model_type=str(config["model_type"]),
        hidden_size=_number(config, _HIDDEN_SIZE),
        vocabulary=vocabulary,
        max_context_length=_number(config, _CONTEXT_LENGTH),
        stop_ids=tuple(sorted(stops)),
        served_merged=config["model_type"] in _SERVED_MERGED,
    )


def refuse_unsafe(folder: Path) -> None:
    """Raises UnsupportedModel when a folder holds code, pickles or links, names others, or asks for remote code."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise unsupported(f"{path.name} is a link that leaves its folder")
        if path.suffix.lower() in _UNSAFE_SUFFIXES:
            raise unsupported(f"{path.name} can run code; only safetensors weights are accepted")
    for path in folder.glob("*.json"):
        if path.stat().st_size < 10 << 20 and "auto_map" in _read_json(path):
            raise unsupported(
                f"{path.name} asks for code of its own (auto_map), which never runs; where transformers knows the "
                "model_type by itself, delete that key"
            )
    for path in folder.glob("*.safetensors.index.json"):
        files = _read_json(path).get("weight_map")
        if not isinstance(files, dict) or any(Path(str(name)).name != name for name in files.values()):
            raise unsupported(f"{path.name} names files outside of the folder")


def unsupported(why: str) -> UnsupportedModel:
    """The error for a base model that is refused; `why` completes the sentence."""
    return UnsupportedModel(Problem("unsupported_model", f"The base model cannot be trained: {why}.", "model"))


def _refuse_architecture(config: dict[str, Any]) -> None:
    """Raises UnsupportedModel for what packs, losses or engines would not treat exactly as the model means it."""
    for name, why in _UNSUPPORTED_SETTINGS:
        if config.get(name):
            raise _unsupported_architecture(why)
    kind = config.get("model_type")
    if kind not in SUPPORTED_TYPES:
        raise _unsupported_architecture(f"its type {kind!r} is not one of {', '.join(SUPPORTED_TYPES)}")
    classes = config.get("architectures")
    if isinstance(classes, list) and classes and not str(classes[0]).endswith(_HEADS):
        raise _unsupported_architecture(f"{classes[0]} does not predict the next token")
    if kind == "gemma3_text" and config.get("attn_logit_softcapping"):
        raise _unsupported_architecture("this type has no attn_logit_softcapping")
    rope_types = _rope_types(config.get("rope_parameters")) | _rope_types(config.get("rope_scaling"))
    ropes = sorted(rope_types & _LENGTH_DEPENDENT_ROPES)
    if ropes:
        raise _unsupported_architecture(
            f"its positions depend on the longest row of a batch (rope type {ropes[0]}), which packs change"
        )


def _rope_types(settings: Any) -> set[str]:
    """Kinds of rotary positions, whether one is set for all layers or one for each kind of layer."""
    if not isinstance(settings, dict):
        return set()
    own = {str(settings[name]) for name in ("rope_type", "type") if name in settings}
    return own.union(*(_rope_types(value) for value in settings.values()))


def _unsupported_architecture(why: str) -> UnsupportedModel:
    message = f"The base model cannot be trained: {why}."
    return UnsupportedModel(Problem("unsupported_architecture", message, "model"))


def _number(config: dict[str, Any], names: tuple[str, ...]) -> int:
    number = next((config[name] for name in names if name in config), None)
    if not isinstance(number, int) or not 0 < number < _LARGEST:
        raise _unsupported_architecture(f"its config.json does not tell {names[0]}")
    return number


def _stop_ids(folder: Path, config: dict[str, Any], vocabulary: int) -> set[int]:
    generation = folder / "generation_config.json"
    told: Any = (_read_json(generation) if generation.exists() else config).get("eos_token_id")
    stops = [] if told is None else told if isinstance(told, list) else [told]
    if not all(isinstance(stop, int) and 0 <= stop < vocabulary for stop in stops):
        raise unsupported(f"eos_token_id names what is none of its {vocabulary} tokens")
    return set(stops)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise unsupported(f"{path.name} is missing or not JSON") from error
    return value if isinstance(value, dict) else {}
