"""Owns models as people bring them: adapters that the real PEFT wrote, and the files of folders."""

from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import AutoModelForCausalLM


def peft_adapter(base: Path, folder: Path, *, seed: int = 5, std: float = 0.2, **config: Any) -> nn.Module:
    """Writes an adapter with these settings of PEFT's LoraConfig, and returns the adapted model as PEFT computes it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    made = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=std)
    made.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    adapted: nn.Module = made.eval()
    return adapted


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
