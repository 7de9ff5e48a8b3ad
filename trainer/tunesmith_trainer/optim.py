"""Owns the optimizer: AdamW in float32, clipping, and its state as tensors.
Must not know what the parameters are for or how rates are chosen."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from tunesmith_trainer import float_halves
from tunesmith_trainer.sharding import on_leader, part_of

_CLIP_NORM = 1.0
_NORM_ABOVE_ZERO = 1e-6  # as torch's own clipping adds it


def stepped_at_once(*, gpu: bool) -> int:
    """Numbers, or one row of more, that are stepped together: what caches hold, or what keeps a GPU busy."""
    return 1 << 24 if gpu else 1 << 18


class Optimizer:
    """AdamW (0.9, 0.999), no weight decay, gradients clipped to norm 1.

    Small updates vanish in bfloat16. Parameters in it are therefore stepped in float32: what rounding takes from them
    is kept here. Where parameters lie on all ranks in parts, so does everything here; all ranks must then call `state`,
    which only the leader gets.

    An `offloaded` one has float32 copies of all parameters and everything else in main memory and steps there; only
    gradients and weights pass between it and the device.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], *, offloaded: bool = False) -> None:
        self._kept = {
            name: _kept(parameter, offloaded=offloaded) for name, parameter in parameters if parameter.requires_grad
        }
        self._parts = list(_parts(self._kept.values()))
        self._steps = 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> Tensor:
        """Applies the gathered gradients and clears them.

        Returns their norm before clipping, as a float32 scalar tensor on the parameters' device.
        """
        norm = _norm([kept.parameter.grad for kept in self._kept.values() if kept.parameter.grad is not None])
        scale = (_CLIP_NORM / (norm + _NORM_ABOVE_ZERO)).clamp(max=1.0)
        for part in self._parts:
            _step([rows for rows in part if rows.kept.parameter.grad is not None], scale, learning_rate, self._steps)
        for kept in self._kept.values():
            kept.parameter.grad = None
        self._steps += 1
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly here, apart from the parameters, by name."""
        tensors = {}
        for name, kept in self._kept.items():
            if kept.copy is not None:
                tensors[f"master.{name}"] = kept.copy
            if kept.lower is not None:
                tensors[f"lower.{name}"] = kept.lower
            tensors[f"step.{name}"] = torch.tensor(float(self._steps))
            tensors[f"exp_avg.{name}"] = kept.first
            tensors[f"exp_avg_sq.{name}"] = kept.second
        return on_leader(tensors)

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `state` gave, here or where it was not offloaded, once the parameters have their values.

        Raises KeyError when a parameter's state is missing.
        """
        for name, kept in self._kept.items():
            self._steps = int(tensors[f"step.{name}"])
            kept.first.copy_(part_of(tensors[f"exp_avg.{name}"], kept.first))
            kept.second.copy_(part_of(tensors[f"exp_avg_sq.{name}"], kept.second))
            if kept.copy is None and kept.lower is None:
                continue
            exact = _exact(name, kept.parameter, tensors)
            for rows in _rows(kept):
                rows.put(rows.of(exact).to(kept.first.device, copy=True))


@dataclass(frozen=True, slots=True)
class _Kept:
    """A parameter, its moments in float32, and what makes it exact.

    That is the `lower` halves of its numbers where it is in bfloat16, or a float32 `copy` where it is offloaded.
    """

    parameter: nn.Parameter
    first: Tensor
    second: Tensor
    lower: Tensor | None
    copy: Tensor | None


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of a parameter, as far as it lies on this rank."""

    kept: _Kept
    start: int
    end: int

    def of(self, tensor: Tensor) -> Tensor:
        """These rows of one of the parameter's tensors, as a view."""
        return _local(tensor)[self.start : self.end]

    def numbers(self) -> Tensor:
        """Them in float32: to be stepped in place, and put back."""
        if self.kept.copy is not None:
            return self.of(self.kept.copy)
        if self.kept.lower is not None:
            return float_halves.join(self.of(self.kept.parameter), self.of(self.kept.lower))
        return self.of(self.kept.parameter)

    def put(self, numbers: Tensor) -> None:
        """Makes numbers in float32, which are lost, what these rows are."""
        if self.kept.copy is not None:
            self.of(self.kept.copy).copy_(numbers)
            self.of(self.kept.parameter).copy_(numbers)
        elif self.kept.lower is not None:
            float_halves.split(numbers, self.of(self.kept.parameter), self.of(self.kept.lower))


def _step(part: Sequence[_Rows], scale: Tensor, learning_rate: float, steps: int) -> None:
    """Steps some rows with their gradients, times `scale`, after so many `steps`."""
    gradients = [rows.of(cast("Tensor", rows.kept.parameter.grad)).float() for rows in part]
    if not gradients:
        return
    torch._foreach_mul_(gradients, scale)  # one call of a GPU, not hundreds
    numbers = [rows.numbers() for rows in part]
    device = numbers[0].device
    adamw(
        numbers,
        [gradient.to(device) for gradient in gradients],
        [rows.of(rows.kept.first) for rows in part],
        [rows.of(rows.kept.second) for rows in part],
        [],
        list(torch.full((len(part),), float(steps), device=device).unbind()),  # it counts this step itself
        fused=True,  # which makes no copies of gradients and moments on its way
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=learning_rate,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
    )
    for rows, stepped in zip(part, numbers, strict=True):
        rows.put(stepped)


def _kept(parameter: nn.Parameter, *, offloaded: bool) -> _Kept:
    values = parameter.detach()
    copy = values.to("cpu", torch.float32, copy=True) if offloaded else None
    lower = float_halves.lower_of(values) if copy is None and values.dtype == torch.bfloat16 else None
    like = values if copy is None else copy
    first, second = (torch.zeros_like(like, dtype=torch.float32) for _ in range(2))
    return _Kept(parameter, first, second, lower, copy)


def _rows(kept: _Kept) -> Iterator[_Rows]:
    """A parameter's rows, as many together as are stepped at once."""
    local = _local(kept.parameter)
    if local.numel():
        at_once = max(1, _room(kept) * len(local) // local.numel())
        for start in range(0, len(local), at_once):
            yield _Rows(kept, start, min(start + at_once, len(local)))


def _parts(parameters: Iterable[_Kept]) -> Iterator[list[_Rows]]:
    """All rows in their order, as many together as are stepped at once."""
    part: list[_Rows] = []
    room = 0
    for kept in parameters:
        for rows in _rows(kept):
            size = rows.of(kept.parameter).numel()
            if size > room and part:
                yield part
                part = []
            if not part:
                room = _room(kept)
            part.append(rows)
            room -= size
    yield part


def _room(kept: _Kept) -> int:
    return stepped_at_once(gpu=kept.parameter.device.type != "cpu")


def _exact(name: str, parameter: nn.Parameter, tensors: dict[str, Tensor]) -> Tensor:
    """A saved parameter's numbers in float32, in parts where it lies in parts.

    Raises KeyError when they were not saved, and the parameter itself is less exact.
    """
    if (stored := tensors.get(f"master.{name}")) is not None:
        return part_of(stored, parameter)
    if parameter.dtype == torch.float32:
        return parameter.detach()
    lower = part_of(tensors[f"lower.{name}"], parameter)
    return float_halves.join(_local(parameter.detach()), _local(lower))


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, over all ranks where they lie in parts."""
    norms = torch.stack(torch._foreach_norm(list(gradients), dtype=torch.float32))
    norm = torch.linalg.vector_norm(norms)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _local(tensor: Tensor) -> Tensor:
    """What of the tensor lies on this rank, in rows."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local if local.dim() else local.unsqueeze(0)
