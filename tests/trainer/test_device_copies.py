"""Copies on a processor, where there is nothing to wait for, and steps as a GPU would take them, on an imagined one.
What a step reads back is tested with the loop."""

import pytest
import torch

from tests.support import imagined_gpu
from tests.support.gpu_steps import FAULTS
from tests.support.tiny_families import FAMILIES
from tunesmith_trainer.device_copies import Readout, to_device


def test_main_memory_is_not_copied_to_itself() -> None:
    values = torch.arange(3)
    assert to_device(values, torch.device("cpu")) is values


def test_numbers_are_read_as_they_were_computed() -> None:
    assert Readout(torch.tensor([0.1, 2.0], dtype=torch.float64)).read() == [0.1, 2.0]


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    told: dict[str, str] = imagined_gpu.call("tests.support.gpu_steps", "complaints", tmp_path_factory.mktemp("gpu"))
    return told


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_leaves_nothing_in_main_memory_and_waits_for_no_number(complaints: dict[str, str], family: str) -> None:
    of_family = {name: said for name, said in complaints.items() if name.startswith(f"{family}: ")}
    assert len(of_family) >= 2
    assert {name: said for name, said in of_family.items() if said} == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_would_show(complaints: dict[str, str], fault: str) -> None:
    assert complaints[fault].startswith(FAULTS[fault][1])
