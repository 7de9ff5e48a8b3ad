"""Owns greedy answers to gsm8k's questions: whether they keep the data's format, and whether they are right.
Must not know how models are trained."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from tunesmith_trainer.base_model import read_facts
from tunesmith_trainer.example import Example
from tunesmith_trainer.tokenizer import load_tokenizer

_MOST_TOKENS = 320
_AT_ONCE = 25
# The data ends every solution with the number alone on a line of its own.
_FORMAT = re.compile(r"(?:.+\n)+#### (-?[\d,.]+)\s*$")


@dataclass(frozen=True, slots=True)
class Answered:
    """Shares of all questions: answers that keep the format, and those whose number is right as well."""

    in_format: float
    right: float


def answer(model: nn.Module, base: Path, examples: Sequence[Example]) -> Answered:
    """Lets the model answer the examples' prompts greedily; one that does not stop by itself keeps no format."""
    tokenizer: Any = load_tokenizer(base)
    stop_ids = read_facts(base, tokenizer.eos_token_id).stop_ids
    model.set_attn_implementation("sdpa")  # type: ignore[operator]  # transformers models have it
    kept = right = 0
    for start in range(0, len(examples), _AT_ONCE):
        batch = examples[start : start + _AT_ONCE]
        for example, tokens in zip(batch, _generate(model, batch, stop_ids), strict=True):
            given = _FORMAT.match(tokenizer.decode(tokens, skip_special_tokens=True))
            wanted = _FORMAT.match(tokenizer.decode(example.token_ids[example.labelled], skip_special_tokens=True))
            if given and wanted and tokens[-1] in stop_ids:
                kept += 1
                right += given.group(1) == wanted.group(1)
    return Answered(kept / len(examples), right / len(examples))


def _generate(model: nn.Module, examples: Sequence[Example], stop_ids: Sequence[int]) -> list[list[int]]:
    prompts = [example.prompt_token_ids for example in examples]
    longest = max(map(len, prompts))
    ids = torch.tensor([[stop_ids[0]] * (longest - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    made = model.generate(  # type: ignore[operator]  # as above
        input_ids=ids,
        attention_mask=seen,
        generation_config=GenerationConfig(
            max_new_tokens=_MOST_TOKENS, do_sample=False, eos_token_id=list(stop_ids), pad_token_id=stop_ids[0]
        ),
    )
    return [_until_stop(row[longest:].tolist(), stop_ids) for row in made]


def _until_stop(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    """The tokens up to the first stop token, which is kept."""
    for index, token in enumerate(tokens):
        if token in stop_ids:
            return tokens[: index + 1]
    return tokens
