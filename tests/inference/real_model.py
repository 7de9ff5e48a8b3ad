"""Owns a small random Llama that the real engine serves, random adapters for it, and what both must answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support import tiny_model

PROMPTS = ([5, 60, 33, 47], [7, 90, 120, 44, 61, 200, 13], [11, 12, 13])
TOKENS = 6

SHOWS_TOOLS = "{% if tools %}Call in <tool_call></tool_call>: {{ tools | tojson }}\n{% endif %}"
"""Goes before a chat template that shows no tools."""
SHOWS_CALLS = (
    "{% for message in messages %}{% for call in message.tool_calls %}{{ call.type }} {{ call.id }} "
    "{{ call.function.name }} {{ call.function.arguments | tojson }}\n{% endfor %}{% endfor %}"
    "{% for message in messages if message.name %}{{ message.name }}\n{% endfor %}"
)
"""Goes before one that shows neither calls nor names."""

NO_BLANKS = {str(tiny_model.tokenizer().convert_tokens_to_ids(blank)): -100 for blank in "ĠĊčĉ"}
"""As `logit_bias`: it would write blanks between the parts of a JSON text until its tokens are used up."""
ONLY_A = {str(tiny_model.tokenizer().convert_tokens_to_ids("a")): 100}
"""As `logit_bias`: it would write halves of characters."""

_HIDDEN, _INNER, _LAYERS = 256, 512, 3


def build_base(folder: Path) -> Path:
    """Writes the base model: heads 64 wide, the smallest that engines support everywhere."""
    torch.manual_seed(0)
    tokenizer = tiny_model.tokenizer(SHOWS_TOOLS + SHOWS_CALLS + tiny_model.CHATML)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN,
        intermediate_size=_INNER,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        initializer_range=0.08,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_adapter(base: Path, folder: Path, seed: int, rank: int = 8) -> Path:
    """Writes a random adapter with the record of what it must answer."""
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(seed)
    tensors = {}
    for layer in range(_LAYERS):
        for module, (out, into) in {"self_attn.o_proj": (_HIDDEN, _HIDDEN), "mlp.down_proj": (_HIDDEN, _INNER)}.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = numbers.normal(0, 0.2, (rank, into)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = numbers.normal(0, 0.2, (out, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["o_proj", "down_proj"],
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "golden.json").write_text(json.dumps(golden(base, folder)))
    return folder


def build_full(base: Path, adapter: Path, folder: Path) -> Path:
    """Writes the base model with the adapter added in, as full weights with the record of what they must answer."""
    shutil.copytree(base, folder)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    _add(model, adapter)
    model.save_pretrained(folder)
    (folder / "golden.json").write_bytes((adapter / "golden.json").read_bytes())
    return folder


def golden(base: Path, adapter: Path) -> dict[str, Any]:
    """What a run would have recorded, computed with transformers on weights with the adapter added in."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    of_base = [_greedy(model, prompt) for prompt in PROMPTS]
    _add(model, adapter)
    prompts = []
    for prompt, (base_tokens, base_logprobs) in zip(PROMPTS, of_base, strict=True):
        tokens, logprobs = _greedy(model, prompt)
        prompts.append(
            {
                "prompt_token_ids": prompt,
                "token_ids": tokens,
                "logprobs": logprobs,
                "base_token_ids": base_tokens,
                "base_logprobs": base_logprobs,
            }
        )
    return {"dtype": "float32", "prompts": prompts}


@torch.no_grad()
def _add(model: Any, adapter: Path) -> None:
    """Adds B·A to each weight; alpha equals the rank, so the scale is 1."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in tensors if ".lora_A." in name]:
        delta = tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
        model.get_parameter(weight).add_(torch.from_numpy(delta))


@torch.no_grad()
def _greedy(model: Any, prompt: Sequence[int]) -> tuple[list[int], list[float]]:
    context, logprobs = list(prompt), []
    for _ in range(TOKENS):
        scores = torch.log_softmax(model(torch.tensor([context])).logits[0, -1], -1)
        context.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
    return context[len(prompt) :], logprobs
