"""Owns what can be told of a base model from its small files: is it safe, is it supported, where does an answer stop.
Must not know torch, weights or where the folder came from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith_trainer.errors import Problem, UnsupportedModel

# Architectures whose decoder takes our attention and whose head is a plain product, without scaling or capping.
SUPPORTED_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so", ".h5", ".msgpack")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the run needs to know before it loads weights. Lengths are in tokens."""

    model_type: str
    hidden_size: int
    max_context_length: int
    stop_ids: tuple[int, ...]


def read_facts(folder: Path, eos_token_id: int | None) -> ModelFacts:
    """Reads a model folder's configuration. Raises UnsupportedModel where training it would be unsafe or wrong."""
    refuse_unsafe(folder)
    config = _read_json(folder / "config.json")
    if config.get("model_type") not in SUPPORTED_TYPES:
        raise unsupported(f"its type {config.get('model_type')!r} is not one of {', '.join(SUPPORTED_TYPES)}")
    context = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if window is not None and config.get("use_sliding_window", True):
        context = min(context, int(window))  # attention within documents is not windowed
    stops = _stop_ids(folder, config) | ({eos_token_id} if eos_token_id is not None else set())
    return ModelFacts(str(config["model_type"]), int(config["hidden_size"]), context, tuple(sorted(stops)))


def refuse_unsafe(folder: Path) -> None:
    """Raises UnsupportedModel when a folder holds code, pickles or links, or asks for remote code."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise unsupported(f"{path.name} is a link that leaves its folder")
        if path.suffix.lower() in _UNSAFE_SUFFIXES:
            raise unsupported(f"{path.name} can run code; only safetensors weights are accepted")
    for path in folder.glob("*.json"):
        if path.stat().st_size < 10 << 20 and "auto_map" in _read_json(path):
            raise unsupported(f"{path.name} asks for code of its own (auto_map)")


def unsupported(why: str) -> UnsupportedModel:
    """The error for a base model that is refused; `why` completes the sentence."""
    return UnsupportedModel(Problem("unsupported_model", f"The base model cannot be trained: {why}.", "model"))


def _stop_ids(folder: Path, config: dict[str, Any]) -> set[int]:
    generation = folder / "generation_config.json"
    stops: Any = (_read_json(generation) if generation.exists() else config).get("eos_token_id")
    if stops is None:
        return set()
    return {int(stop) for stop in (stops if isinstance(stops, list) else [stops])}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise unsupported(f"{path.name} is missing or not JSON") from error
    return value if isinstance(value, dict) else {}
