"""Owns the optimizer: AdamW on float32 master copies, clipping, and its state as tensors.
Must not know what the parameters are for or how rates are chosen."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tunesmith_trainer.sharding import on_leader, part_of

_CLIP_NORM = 1.0


class Optimizer:
    """AdamW (0.9, 0.999), no weight decay, gradients clipped to norm 1.

    Parameters that are not float32 get a float32 master copy, since small updates vanish in bfloat16. Where parameters
    lie on all ranks in parts, so does everything here; all ranks must then call `state`, which only the leader gets.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self._parameters = {name: parameter for name, parameter in parameters if parameter.requires_grad}
        self._masters = {
            name: parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())
            for name, parameter in self._parameters.items()
        }
        self._adam = torch.optim.AdamW(self._masters.values(), betas=(0.9, 0.999), weight_decay=0.0, foreach=True)

    def step(self, learning_rate: float) -> Tensor:
        """Applies the gathered gradients and clears them. Returns their norm before clipping, as a scalar tensor."""
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            if master is not parameter and parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.float(), None
        norm = nn.utils.clip_grad_norm_(self._masters.values(), _CLIP_NORM)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if self._masters[name] is not parameter:
                    parameter.copy_(self._masters[name])
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly here, apart from float32 parameters, by name."""
        tensors = {}
        for name, master in self._masters.items():
            if master is not self._parameters[name]:
                tensors[f"master.{name}"] = master.detach()
            for key, value in self._adam.state[master].items():
                tensors[f"{key}.{name}"] = value.detach()
        return on_leader(tensors)

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `state` gave. Raises KeyError when a parameter's state is missing."""
        for name, master in self._masters.items():
            if master is not self._parameters[name]:
                with torch.no_grad():
                    master.copy_(part_of(tensors[f"master.{name}"], master))
                    self._parameters[name].copy_(master)
            self._adam.state[master] = {
                "step": tensors[f"step.{name}"].clone(),
                "exp_avg": part_of(tensors[f"exp_avg.{name}"], master).to(master.device).clone(),
                "exp_avg_sq": part_of(tensors[f"exp_avg_sq.{name}"], master).to(master.device).clone(),
            }
