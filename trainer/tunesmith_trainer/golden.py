"""Owns golden answers: what base and tuned model say to a few prompts, recorded so that engines can be held to it.
Must not know how weights came about, optimizers or the control plane."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from tunesmith_trainer import lora
from tunesmith_trainer.base_shapes import stored_shapes
from tunesmith_trainer.example import Example
from tunesmith_trainer.machine import memory_of
from tunesmith_trainer.memory_plan import PROOF_ROOM
from tunesmith_trainer.model import load_for_generation

GOLDEN_FILE = "golden.json"
_PROMPTS = 3
_PROMPT_TOKENS = 512
_TOKENS = 8


class GoldenAnswers:
    """Answers for the models of one base. `prompts` are token ids; `stop_ids` end an answer.

    `frame` is recorded beside them: what prompts of /v1/completions stand in where the model has learnt them so.
    """

    def __init__(
        self,
        base_folder: Path,
        prompts: Sequence[list[int]],
        stop_ids: Sequence[int],
        frame: dict[str, Any] | None = None,
    ) -> None:
        self._base_folder = base_folder
        self._frame = frame
        self._prompts = prompts
        self._stop_ids = stop_ids
        self._base_answers: list[dict[str, Any]] | None = None

    def record(self, folder: Path, device: torch.device, *, whole: bool) -> list[dict[str, Any]]:
        """Writes greedy answers in float32 into `folder` and returns them.

        The tuned model is loaded from the files there: a `whole` one, or an adapter on the base. Where the device has
        no room for it, in main memory.
        """
        device = _with_room(device, self._base_folder)
        if self._base_answers is None:
            self._base_answers = self._answers(load_for_generation(self._base_folder, device))
        tuned = load_for_generation(folder if whole else self._base_folder, device)
        if not whole:
            lora.attach_saved(tuned, folder)
        pairs = zip(self._prompts, self._answers(tuned), self._base_answers, strict=True)
        prompts = [
            {
                "prompt_token_ids": prompt,
                "token_ids": answer["token_ids"],
                "logprobs": answer["logprobs"],
                "base_token_ids": base["token_ids"],
                "base_logprobs": base["logprobs"],
            }
            for prompt, answer, base in pairs
        ]
        frame = {"completion_frame": self._frame} if self._frame else {}
        (folder / GOLDEN_FILE).write_text(json.dumps({"dtype": "float32", "prompts": prompts, **frame}))
        return prompts

    def as_four_bits(self, folder: Path, device: torch.device) -> list[dict[str, Any]]:
        """What the adapter in `folder` answers on the base in four bits, as it was trained; nothing is written."""
        device = _with_room(device, self._base_folder)
        tuned = load_for_generation(self._base_folder, device, as_four_bits=True)
        lora.attach_saved(tuned, folder)
        answers = zip(self._prompts, self._answers(tuned), strict=True)
        return [{"prompt_token_ids": prompt, **answer} for prompt, answer in answers]

    def _answers(self, model: nn.Module) -> list[dict[str, Any]]:
        return [greedy(model, prompt, self._stop_ids) for prompt in self._prompts]


def golden_prompts(evaluation: Sequence[Example], training: Sequence[Example], context: int) -> list[list[int]]:
    """The shortest prompts, evaluation rows first: cheap to prove, and none is seen in training if it can be helped.

    Of long ones the beginning, so that answers have room in a `context` of so many tokens: any tokens prove as much.
    """
    most = min(_PROMPT_TOKENS, context - _TOKENS)
    ordered = [
        example.prompt_token_ids
        for examples in (evaluation, training)
        for example in sorted(examples, key=lambda example: len(example.prompt_token_ids))[:_PROMPTS]
    ]
    return [prompt[:most] for prompt in ordered if prompt][:_PROMPTS]


def greedy(model: nn.Module, prompt: list[int], stop_ids: Sequence[int], tokens: int = _TOKENS) -> dict[str, Any]:
    """At most `tokens` greedy tokens and their natural log-probabilities; ends with the stop token where one comes."""
    ids = torch.tensor([prompt], device=next(model.parameters()).device)
    answer = model.generate(  # type: ignore[operator]  # transformers models have it
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0] if stop_ids else 0,
            return_dict_in_generate=True,
            output_logits=True,
        ),
    )
    token_ids = answer.sequences[0, len(prompt) :].tolist()
    logprobs = [
        float(logits[0].float().log_softmax(-1)[token]) for logits, token in zip(answer.logits, token_ids, strict=True)
    ]
    return {"token_ids": token_ids, "logprobs": logprobs}


def _with_room(device: torch.device, folder: Path) -> torch.device:
    """The device, or main memory where a model in float32 does not fit beside what is on the device already."""
    if device.type == "cpu":
        return device
    torch.cuda.empty_cache()
    needed = 4 * PROOF_ROOM * sum(math.prod(shape) for shape in stored_shapes(folder).values())
    return device if needed <= memory_of(device)[0] else torch.device("cpu")
