"""Owns the optimizer: AdamW on float32 master copies, clipping, and its state as tensors.
Must not know what the parameters are for or how rates are chosen."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tunesmith_trainer.sharding import on_leader, part_of

_CLIP_NORM = 1.0
_NORM_ABOVE_ZERO = 1e-6  # as torch's own clipping adds it
STEPPED_AT_ONCE = 1 << 24
"""Numbers, or one parameter of more, that are stepped together: gradients in float32 are made of so many at a time."""


class Optimizer:
    """AdamW (0.9, 0.999), no weight decay, gradients clipped to norm 1.

    Parameters that are not float32 get a float32 master copy, since small updates vanish in bfloat16. Where parameters
    lie on all ranks in parts, so does everything here; all ranks must then call `state`, which only the leader gets.

    An `offloaded` one has master copies of all parameters and everything else in main memory and steps there; only
    gradients and weights pass between it and the device.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], *, offloaded: bool = False) -> None:
        self._parameters = {name: parameter for name, parameter in parameters if parameter.requires_grad}
        self._masters = {name: _master(parameter, offloaded=offloaded) for name, parameter in self._parameters.items()}
        self._groups = [(names, self._adam(names)) for names in _grouped(self._parameters)]

    def step(self, learning_rate: float) -> Tensor:
        """Applies the gathered gradients and clears them.

        Returns their norm before clipping, as a float32 scalar tensor on the parameters' device.
        """
        norm = _norm([parameter.grad for parameter in self._parameters.values() if parameter.grad is not None])
        scale = (_CLIP_NORM / (norm + _NORM_ABOVE_ZERO)).clamp(max=1.0)
        for names, adam in self._groups:
            self._hand_over(names, scale)
            adam.param_groups[0]["lr"] = learning_rate
            adam.step()
            adam.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name in names:
                    if self._masters[name] is not self._parameters[name]:
                        self._parameters[name].copy_(self._masters[name])
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly here, apart from float32 parameters, by name."""
        tensors = {}
        for names, adam in self._groups:
            for name in names:
                master = self._masters[name]
                if master is not self._parameters[name]:
                    tensors[f"master.{name}"] = master.detach()
                for key, value in adam.state[master].items():
                    tensors[f"{key}.{name}"] = value.detach()
        return on_leader(tensors)

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `state` gave, here or where it was not offloaded, once the parameters have their values.

        Raises KeyError when a parameter's state is missing.
        """
        for names, adam in self._groups:
            for name in names:
                master = self._restored_master(name, tensors.get(f"master.{name}"))
                adam.state[master] = {
                    "step": tensors[f"step.{name}"].to(master.device).clone(),
                    "exp_avg": part_of(tensors[f"exp_avg.{name}"], master).to(master.device).clone(),
                    "exp_avg_sq": part_of(tensors[f"exp_avg_sq.{name}"], master).to(master.device).clone(),
                }

    def _adam(self, names: Sequence[str]) -> torch.optim.AdamW:
        masters = [self._masters[name] for name in names]
        # Fused, it makes no copies of gradients and moments on its way.
        return torch.optim.AdamW(masters, betas=(0.9, 0.999), weight_decay=0.0, fused=True)

    def _hand_over(self, names: Sequence[str], scale: Tensor) -> None:
        """Makes the parameters' gradients, scaled, their masters'."""
        handed = [name for name in names if self._parameters[name].grad is not None]
        gradients = []
        for name in handed:
            gradient = cast("Tensor", self._parameters[name].grad)
            gradients.append(gradient.float())
            self._parameters[name].grad = None
        if gradients:
            torch._foreach_mul_([_local(gradient) for gradient in gradients], scale)  # one call of a GPU, not hundreds
        for name, gradient in zip(handed, gradients, strict=True):
            self._masters[name].grad = gradient.to(self._masters[name].device)

    def _restored_master(self, name: str, stored: Tensor | None) -> nn.Parameter:
        """A parameter's master with its stored value, which is the parameter's own where that is as exact."""
        parameter, master = self._parameters[name], self._masters[name]
        if stored is None and parameter.dtype != torch.float32:
            raise KeyError(f"master.{name}")
        if master is not parameter:
            with torch.no_grad():
                master.copy_(parameter if stored is None else part_of(stored, master))
                parameter.copy_(master)
        return master


def _master(parameter: nn.Parameter, *, offloaded: bool) -> nn.Parameter:
    """What the optimizer steps on: the parameter itself where it is float32 and lies where it is stepped."""
    if offloaded:
        return nn.Parameter(parameter.detach().to("cpu", torch.float32, copy=True))
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())


def _grouped(parameters: dict[str, nn.Parameter]) -> list[list[str]]:
    """The parameters' names in their order, as many together as are stepped at once."""
    groups: list[list[str]] = []
    room = 0
    for name, parameter in parameters.items():
        size = _local(parameter).numel()
        if size > room:
            groups.append([])
            room = STEPPED_AT_ONCE
        groups[-1].append(name)
        room -= size
    return groups


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, over all ranks where they lie in parts."""
    norms = torch.stack(torch._foreach_norm(list(gradients), dtype=torch.float32))
    norm = torch.linalg.vector_norm(norms)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _local(tensor: Tensor) -> Tensor:
    """What of the tensor lies on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
