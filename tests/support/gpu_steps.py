"""Training steps on an imagined GPU: what torch complains of while it follows nothing but shapes, dtypes and devices.

It complains of calculations across devices, and of whoever looks at a number: on a GPU the host would have to wait.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tests.support import tiny_families
from tests.support.onlooker import Onlooker
from tests.support.steps import example
from tunesmith_trainer import attention, four_bit_linear, lora
from tunesmith_trainer.base_shapes import decoder_layers
from tunesmith_trainer.config import Facts, TrainingConfig, Wanted, resolve
from tunesmith_trainer.example import Example, joined
from tunesmith_trainer.loop import Loop
from tunesmith_trainer.lora_linear import LoraLinear
from tunesmith_trainer.methods import Objective, TokenObjective
from tunesmith_trainer.objectives import Scored
from tunesmith_trainer.optim import Optimizer
from tunesmith_trainer.packing import Pack
from tunesmith_trainer.preference import PreferenceObjective
from tunesmith_trainer.recompute import recompute

GPU = torch.device("cuda:0")
_ROWS, _PACK_TOKENS = 8, 100
_WITH_ALL_WAYS = ("llama", "gemma2")  # that with a kernel for packs, and that without


class _Looking(TokenObjective):
    def score(self, model: nn.Module, batch: Pack, examples: Sequence[Example]) -> Scored:
        scored = super().score(model, batch, examples)
        assert scored.total.item() >= 0
        return scored


@dataclass(frozen=True)
class Way:
    """How a step is taken."""

    full_weights: bool = False
    recomputed: int = 0
    offloaded: bool = False
    in_four_bits: bool = False
    objective: Callable[[], Objective] = TokenObjective
    in_pairs: bool = False
    astray: bool = False


def _preferring() -> Objective:
    objective = PreferenceObjective(beta=0.1)
    objective._base_margins = defaultdict(float)  # which are numbers, read before the first step
    return objective


_OF_ALL = {
    "adapters": Way(),
    "full weights": Way(full_weights=True),
    "adapters, four bits": Way(in_four_bits=True),
}
_OF_SOME = {
    "adapters, recomputed": Way(recomputed=2),
    "full weights, offloaded": Way(full_weights=True, recomputed=2, offloaded=True),
    "pairs": Way(objective=_preferring, in_pairs=True),
    "pairs, full weights": Way(full_weights=True, objective=_preferring, in_pairs=True),
}
FAULTS = {
    "a number is looked at": (Way(objective=_Looking), "DataDependentOutputException"),
    "a weight is in main memory": (Way(astray=True), "FakeTensorDeviceMismatchError"),
}
"""Ways that are wrong, and what torch says of them."""


def complaints() -> dict[str, str]:
    """What torch complains of, by "family: way", or by fault; an empty text where it does not."""
    cases = {
        f"{family}: {name}": (family, way)
        for family in tiny_families.FAMILIES
        for name, way in (_OF_ALL | (_OF_SOME if family in _WITH_ALL_WAYS else {})).items()
        if not (way.in_four_bits and family == "gpt2")  # whose layers are never made so
    }
    faults = {name: ("llama", way) for name, (way, _) in FAULTS.items()}
    return {name: _complaint(*case) for name, case in (cases | faults).items()}


def loop_over(
    rows: Sequence[Example], shape: PreTrainedConfig, config: TrainingConfig, way: Way, pack_tokens: int
) -> tuple[Loop, nn.Module, Optimizer]:
    """A loop that is about to take steps with a model of this shape, which lies on the GPU, and what it changes."""
    model = _build(shape, in_four_bits=way.in_four_bits)
    if not way.full_weights:
        lora.attach(model, config.lora_rank, config.lora_alpha, config.seed)
    if way.astray:
        adapted = next(module for module in model.modules() if isinstance(module, LoraLinear))
        adapted.lora_A = nn.Parameter(adapted.lora_A.detach().cpu())
    optimizer = Optimizer(model.named_parameters(), offloaded=way.offloaded)
    recompute(model, way.recomputed)
    loop = Loop(model, optimizer, config, rows, rows, pack_tokens, Onlooker(), objective=way.objective())
    return loop, model, optimizer


def _complaint(family: str, way: Way) -> str:
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            _take_step(family, way)
    except Exception as error:  # whatever torch raises is what is asked for
        return f"{type(error).__name__}: {error}"
    return ""


def _take_step(family: str, way: Way) -> None:
    rows = [_row(number, in_pairs=way.in_pairs) for number in range(1, _ROWS + 1)]
    wanted = Wanted(full_weights=way.full_weights, seed=1, n_epochs=1, batch_size=_ROWS, lora_rank=4, max_rank=8)
    config = resolve(wanted, Facts(_ROWS, 100, 10, 64, "llama", 512))[0]
    loop_over(rows, tiny_families.config(family), config, way, _PACK_TOKENS)[0]._take(1)


def _build(config: PreTrainedConfig, *, in_four_bits: bool = False) -> nn.Module:
    """A model for steps in bfloat16 on the GPU, with the attention that trains."""
    with GPU:
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=attention.NAME
        )
    if in_four_bits:
        # They are where they are to go; what is imagined cannot always be moved by torch.
        with patch.object(nn.Linear, "to", lambda layer, _: layer):
            four_bit_linear.install(decoder_layers(model), GPU)
    return model.eval()


def _row(number: int, *, in_pairs: bool) -> Example:
    row = example(number, 20 + number, 12)
    return joined([row, example(number, 25, 12)]) if in_pairs else row
