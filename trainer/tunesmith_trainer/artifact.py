"""Owns the files that become a revision: adapter or whole model, and the golden answers that prove it when served.
Must not know optimizers or the control plane."""

import functools
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith_trainer import lora
from tunesmith_trainer.adapter_file import CONFIG_FILE, WEIGHTS_FILE
from tunesmith_trainer.config import TrainingConfig
from tunesmith_trainer.golden import GoldenAnswers
from tunesmith_trainer.model import load_as_stored

TEXTS = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""What a folder has beside weights, as the control plane takes it."""
_SHARD_SIZE = "4GB"  # object storage takes no more than 5 GiB at once


class ArtifactWriter:
    """Writes artifacts of one run. `prompts` are token ids; `stop_ids` end an answer; `frame` as in GoldenAnswers.

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
        frame: dict[str, Any] | None = None,
    ) -> None:
        self._base_folder = base_folder
        self._base_model_id = base_model_id
        self._config = config
        self._merged = merged
        self._golden = GoldenAnswers(base_folder, prompts, stop_ids, frame)

    @property
    def state_files(self) -> tuple[str, ...]:
        """Files that `write` makes for resuming only: adapters that are not served as such."""
        return (WEIGHTS_FILE, CONFIG_FILE) if self._merged else ()

    def write(
        self, model: nn.Module, weights: Mapping[str, Tensor], folder: Path, *, in_four_bits: bool = False
    ) -> tuple[list[dict[str, Any]], torch.dtype]:
        """Writes the trained weights into `folder` and, read back from there, the golden answers.

        `weights` is the model's state dict, of which the model itself may hold a part only. Returns what `prove` needs
        to show that the files answer as the model does: of an adapter that was trained on a base `in_four_bits`, what
        it answers there. The golden answers are those on the whole weights, which serve it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        parameter = next(model.parameters())
        dtypes = [parameter.dtype]
        if self._config.full_weights:
            write_whole(model, weights, self._base_folder, folder)
        elif self._merged:
            with tempfile.TemporaryDirectory(dir=folder) as adapter:
                lora.save(model, Path(adapter), self._base_model_id)
                dtypes.append(write_merged(Path(adapter), self._base_folder, folder))
        else:
            lora.save(model, folder, self._base_model_id)
        answers = self._golden.record(folder, parameter.device, whole=self._config.full_weights or self._merged)
        if self._merged:
            # Last: where PEFT is installed, transformers would put the adapter on the merged weights once more.
            lora.save(model, folder, self._base_model_id)
        if in_four_bits:
            answers = self._golden.as_four_bits(folder, parameter.device)
        return answers, min(dtypes, key=lambda dtype: dtype.itemsize)


def write_merged(adapter: Path, base_folder: Path, folder: Path) -> torch.dtype:
    """Writes the whole model that a saved adapter makes of the base, in the base's dtype, which is returned."""
    merged = load_as_stored(base_folder)
    lora.attach_saved(merged, adapter)
    lora.merge(merged)
    write_whole(merged, merged.state_dict(), base_folder, folder)
    return next(merged.parameters()).dtype


def write_whole(model: nn.Module, weights: Mapping[str, Tensor], base_folder: Path, folder: Path) -> None:
    """Writes a whole model. Tokenizer, template and configuration are the base's own, byte for byte.

    Only where config.json tells another dtype than that of the weights, it gets theirs: libraries load as it says.
    """
    model.save_pretrained(folder, state_dict=weights, max_shard_size=_SHARD_SIZE)  # type: ignore[operator]  # transformers models have it
    copy_texts(base_folder, folder)
    floats = [tensor.dtype for tensor in weights.values() if tensor.is_floating_point()]
    _tell_dtype(folder / "config.json", functools.reduce(torch.promote_types, floats))


def copy_texts(base_folder: Path, folder: Path) -> None:
    """Copies what a base model has beside its weights and what models are read with; folders hold more than that."""
    for name in TEXTS:
        if (base_folder / name).is_file():
            shutil.copyfile(base_folder / name, folder / name)


def _tell_dtype(path: Path, dtype: torch.dtype) -> None:
    """Sets what the configuration says of the dtype, under the name that the library of its time had for it."""
    config = json.loads(path.read_bytes())
    told = {key: str(dtype).removeprefix("torch.") for key in ("dtype", "torch_dtype") if key in config}
    if told != {key: config[key] for key in told}:
        path.write_text(json.dumps(config | told, indent=2, ensure_ascii=False) + "\n")
