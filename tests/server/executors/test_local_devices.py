"""Which devices a machine offers, with a driver's command that says what the test wants."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors.local_devices import environment, list_devices

TWO_GPUS = "echo '0, GPU-aaa'; echo '1, GPU-bbb'"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for nvidia-smi, which is found first; unset are the GPUs that the operator picks."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "nvidia-smi"


def test_a_machine_without_a_driver_has_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_devices(2) == ("slot-0", "slot-1")


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        (None, ("GPU-bbb", "GPU-aaa")),
        ("1", ("GPU-bbb",)),
        ("1,0", ("GPU-aaa", "GPU-bbb")),
        ("GPU-aaa", ("GPU-aaa",)),
        ("7", ("slot-0",)),
        ("", ("slot-0",)),
    ],
)
def test_gpus_are_named_by_uuid_and_only_those_left_to_us_count(
    driver: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, devices: tuple[str, ...]
) -> None:
    answer(driver, TWO_GPUS)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert list_devices(1) == devices


def test_a_driver_that_does_not_answer_is_no_machine_without_gpus(driver: Path) -> None:
    answer(driver, "exit 9")
    with pytest.raises(UnavailableError):
        list_devices(1)


def test_a_driver_that_does_not_answer_can_be_hidden(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(driver, "exit 9")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert list_devices(1) == ("slot-0",)


def test_a_run_sees_its_gpus_only() -> None:
    assert environment(("GPU-bbb", "GPU-aaa")) == {"CUDA_VISIBLE_DEVICES": "GPU-bbb,GPU-aaa"}
    assert environment(("slot-0",)) == environment(()) == {}


def answer(driver: Path, script: str) -> None:
    """What the driver's command does."""
    driver.write_text(f"#!/bin/sh\n{script}\n")
    driver.chmod(0o755)
