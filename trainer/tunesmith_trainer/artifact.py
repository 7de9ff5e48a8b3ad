"""Owns the files that become a revision: adapter or whole model, and the golden answers that prove it when served.
Must not know optimizers or the control plane."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from tunesmith_trainer import lora
from tunesmith_trainer.adapter_file import CONFIG_FILE, WEIGHTS_FILE
from tunesmith_trainer.config import TrainingConfig
from tunesmith_trainer.model import load_as_stored, load_for_generation
from tunesmith_trainer.rendering import Example

GOLDEN_FILE = "golden.json"
_GOLDEN_PROMPTS = 3
_GOLDEN_TOKENS = 8
_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")


class ArtifactWriter:
    """Writes artifacts of one run. `prompts` are token ids; `stop_ids` end an answer.

    `merged`: adapters are written into the weights of a whole model, since engines could not load them by themselves.
    """

    def __init__(
        self,
        base_folder: Path,
        base_model_id: str,
        config: TrainingConfig,
        prompts: Sequence[list[int]],
        stop_ids: Sequence[int],
        *,
        merged: bool,
    ) -> None:
        self._base_folder = base_folder
        self._base_model_id = base_model_id
        self._config = config
        self._prompts = prompts
        self._stop_ids = stop_ids
        self._merged = merged
        self._base_answers: list[dict[str, Any]] | None = None

    @property
    def state_files(self) -> tuple[str, ...]:
        """Files that `write` makes for resuming only: adapters that are not served as such."""
        return (WEIGHTS_FILE, CONFIG_FILE) if self._merged else ()

    def write(
        self, model: nn.Module, weights: Mapping[str, Tensor], folder: Path
    ) -> tuple[list[dict[str, Any]], torch.dtype]:
        """Writes the trained weights into `folder` and, read back from there, the golden answers.

        `weights` is the model's state dict, of which the model itself may hold a part only. Returns what `prove` needs
        to show that the files answer as the model does.
        """
        folder.mkdir(parents=True, exist_ok=True)
        parameter = next(model.parameters())
        dtypes = [parameter.dtype]
        if self._config.full_weights:
            self._write_whole(model, folder, weights)
        elif self._merged:
            dtypes.append(self._write_merged(model, folder))
        else:
            lora.save(model, folder, self._base_model_id)
        golden = self._golden(folder, parameter.device)
        (folder / GOLDEN_FILE).write_text(json.dumps(golden))
        if self._merged:
            # Last: where PEFT is installed, transformers would put the adapter on the merged weights once more.
            lora.save(model, folder, self._base_model_id)
        return golden["prompts"], min(dtypes, key=lambda dtype: dtype.itemsize)

    def _write_merged(self, model: nn.Module, folder: Path) -> torch.dtype:
        """The whole model that the adapters make of the base, in the base's dtype, which is returned."""
        merged = load_as_stored(self._base_folder)
        with tempfile.TemporaryDirectory(dir=folder) as adapter:
            lora.save(model, Path(adapter), self._base_model_id)
            lora.attach_saved(merged, Path(adapter))
        lora.merge(merged)
        self._write_whole(merged, folder, merged.state_dict())
        return next(merged.parameters()).dtype

    def _write_whole(self, model: nn.Module, folder: Path, weights: Mapping[str, Tensor]) -> None:
        model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]  # transformers models have it
        self._copy_small_files(folder)

    def _copy_small_files(self, folder: Path) -> None:
        """Tokenizer, template and configuration are the base's own, byte for byte."""
        for path in self._base_folder.iterdir():
            if path.is_file() and path.name != "manifest.json" and not path.name.endswith(_WEIGHT_SUFFIXES):
                shutil.copyfile(path, folder / path.name)

    def _golden(self, folder: Path, device: torch.device) -> dict[str, Any]:
        """Greedy answers in float32 of base and tuned model, the latter loaded from the written files."""
        if self._base_answers is None:
            self._base_answers = self._answers(load_for_generation(self._base_folder, device))
        if self._config.full_weights or self._merged:
            tuned = load_for_generation(folder, device)
        else:
            tuned = load_for_generation(self._base_folder, device)
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
        return {"dtype": "float32", "prompts": prompts}

    def _answers(self, model: nn.Module) -> list[dict[str, Any]]:
        return [greedy(model, prompt, self._stop_ids) for prompt in self._prompts]


def golden_prompts(evaluation: Sequence[Example], training: Sequence[Example]) -> list[list[int]]:
    """The shortest prompts, evaluation rows first: cheap to prove, and none is seen in training if it can be helped."""
    ordered = [
        example.prompt_token_ids
        for examples in (evaluation, training)
        for example in sorted(examples, key=lambda example: len(example.prompt_token_ids))[:_GOLDEN_PROMPTS]
    ]
    return [prompt for prompt in ordered if prompt][:_GOLDEN_PROMPTS]


def greedy(
    model: nn.Module, prompt: list[int], stop_ids: Sequence[int], tokens: int = _GOLDEN_TOKENS
) -> dict[str, Any]:
    """At most `tokens` greedy tokens and their natural log-probabilities; ends with the stop token where one comes."""
    ids = torch.tensor([prompt], device=next(model.parameters()).device)
    answer = model.generate(  # type: ignore[operator]  # transformers models have it
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
            return_dict_in_generate=True,
            output_logits=True,
        ),
    )
    token_ids = answer.sequences[0, len(prompt) :].tolist()
    logprobs = [
        float(logits[0].float().log_softmax(-1)[token]) for logits, token in zip(answer.logits, token_ids, strict=True)
    ]
    return {"token_ids": token_ids, "logprobs": logprobs}
