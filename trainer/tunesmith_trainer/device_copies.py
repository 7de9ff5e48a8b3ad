"""Owns copies between main memory and the device that computes, during which neither waits for the other.
Must not know models, data or losses."""

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values of main memory on the device, for work that is queued there from now on."""
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)


class Readout:
    """Numbers on their way to main memory; the device goes on meanwhile."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrival: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch
            self._arrival.record()

    def read(self) -> list[float]:
        """The numbers. Waits until they have arrived, but not for what was queued on the device after them."""
        if self._arrival is not None:
            self._arrival.synchronize()
        numbers: list[float] = self._numbers.tolist()
        return numbers
