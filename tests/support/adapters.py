"""Adapters as if they had learnt something."""

import torch
from torch import nn


def wake(model: nn.Module, *, seed: int = 2, std: float = 0.1) -> None:
    """Gives fresh adapters something to say: their B, which starts at zero, becomes random."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=std)
