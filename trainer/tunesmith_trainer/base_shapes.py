"""Owns the shapes of a base model, told from its configuration without its weights.
Must not know data, memory or what is done with the shapes."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True, slots=True)
class BaseShapes:
    """Widths in numbers, `parameters` with tied ones counted once, `linears` (out, in) of every layer but the head.

    `normed` is the sum of the widths of one decoder layer's norms. `capped_heads` are the heads whose scores attention
    bounds and therefore has to write down; 0 where it bounds none. `window` is `window_of` its configuration, and
    `share_up_to` likewise.
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    normed: int
    capped_heads: int
    vocabulary: int
    window: int | None
    share_up_to: float
    linears: dict[str, tuple[int, int]]

    @property
    def multiplied(self) -> int:
        """Parameters that every token is multiplied with: those of the linear layers without the head."""
        return sum(out * width for out, width in self.linears.values())

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of adapters of this rank on every linear layer."""
        return sum(rank * (out + width) for out, width in self.linears.values())


def build_empty(folder: Path) -> nn.Module:
    """The model without memory for its weights: every tensor lies on the meta device."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return cast("nn.Module", AutoModelForCausalLM.from_config(config, trust_remote_code=False))


def read_shapes(model: nn.Module) -> BaseShapes:
    """The shapes of a model that `build_empty` made."""
    config: Any = model.config
    head = model.get_output_embeddings()  # type: ignore[operator]  # transformers models have it
    linears = {
        name: (module.nf, module.nx) if isinstance(module, Conv1D) else (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    queries, keys = heads * width, getattr(config, "num_key_value_heads", heads) * width
    return BaseShapes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        # GPT-2 has neither, unless its feed-forward layers are of unusual width.
        intermediate=getattr(config, "intermediate_size", None) or config.n_inner or 4 * config.hidden_size,
        queries=queries,
        keys=keys,
        normed=_normed(decoder_layers(model)[0], config.hidden_size, queries, keys),
        capped_heads=heads if getattr(config, "attn_logit_softcapping", None) else 0,
        vocabulary=config.vocab_size,
        window=window_of(config),
        share_up_to=share_up_to(config),
        linears=linears,
    )


def share_up_to(config: Any) -> float:
    """Tokens of the longest document that may share its beginning with others of a pack, on a processor.

    Attention to two places can be joined where scores are not bounded, and where each token sees all before it.
    """
    if getattr(config, "attn_logit_softcapping", None):
        return 0
    return window_of(config) or math.inf


def window_of(config: Any) -> int | None:
    """Tokens that a token of some layer sees at most; None where all layers see all."""
    has_window = getattr(config, "use_sliding_window", True)
    return (has_window and getattr(config, "sliding_window", None)) or None


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers that the hidden states pass one after the other."""
    decoder = cast("nn.Module", model.base_model)
    return next(child for child in decoder.children() if isinstance(child, nn.ModuleList))


def _normed(layer: nn.Module, hidden: int, queries: int, keys: int) -> int:
    """Widths of all norms of a layer; those inside attention are as narrow as a head, and work on every head."""
    widths = {"q_norm": queries, "k_norm": keys}
    names = [name for name, module in layer.named_modules() if "Norm" in type(module).__name__]
    return sum(widths.get(name.rpartition(".")[2], hidden) for name in names)


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that lie in the folder, by name; empty where only the small files are there."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
    return shapes
