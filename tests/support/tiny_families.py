"""A tiny random model of each family that is trained, made from its configuration: windows shorter than the rows."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, PreTrainedConfig

from tests.support import tiny_model

WINDOW = 9

_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"head_dim": 24},
    "gemma": {"head_dim": 24},
    # Caps so low that passing over them would show; a query scale that is not the head's width.
    "gemma2": {
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 0.7,
        "final_logit_softcapping": 1.5,
        "query_pre_attn_scalar": 7,
    },
    "gemma3_text": {"sliding_window": WINDOW, "query_pre_attn_scalar": 7, "sliding_window_pattern": 2},
    "phi3": {"sliding_window": WINDOW, "tie_word_embeddings": False},
    "gpt2": {"resid_pdrop": 0.2, "attn_pdrop": 0.2, "embd_pdrop": 0.2},
}
FAMILIES = tuple(_OWN)


def config(family: str) -> PreTrainedConfig:
    """The configuration of the family's tiny model."""
    tokens: dict[str, Any] = {"vocab_size": 259, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    if family == "gpt2":
        return GPT2Config(n_embd=64, n_head=4, n_layer=3, n_positions=512, **tokens, **_OWN["gpt2"])
    return AutoConfig.for_model(family, **(_SHAPE | tokens | _OWN[family]))


def build(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Writes the model's folder in float32; GPT-2 has no chat template."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(family))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases as training leaves them, not as it finds them
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            elif family == "gpt2":
                parameter.mul_(5)
    model.save_pretrained(folder)
    tiny_model.tokenizer(None if family == "gpt2" else tiny_model.CHATML).save_pretrained(folder)
    return folder


def build_in_cache(family: str, cache: Path) -> tuple[str, Path]:
    """Builds the family's model as a cached base model. Returns its revision and folder."""
    filling = build(family, cache / "base_models" / "filling")
    return tiny_model.publish(filling, family)
