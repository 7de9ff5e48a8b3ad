"""Copies on a processor, where there is nothing to wait for; what a step reads back is tested with the loop."""

import torch

from tunesmith_trainer.device_copies import Readout, to_device


def test_main_memory_is_not_copied_to_itself() -> None:
    values = torch.arange(3)
    assert to_device(values, torch.device("cpu")) is values


def test_numbers_are_read_as_they_were_computed() -> None:
    assert Readout(torch.tensor([0.1, 2.0], dtype=torch.float64)).read() == [0.1, 2.0]
