"""Which GPUs are ours, told from listings as they are found on real machines."""

import pytest

from tunesmith_trainer import model
from tunesmith_trainer.errors import InfrastructureFailed
from tunesmith_trainer.gpus import gpus_of, largest

LISTING = (
    "0, GPU-a, NVIDIA L4, 23034, 20000, 8.9\n"
    "1, GPU-b, NVIDIA H200, 143771, 100000, 9.0\n"
    "2, GPU-c, NVIDIA H200, 143771, 140000, 9.0\n"
)


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 3), ("1", 1), ("GPU-a,GPU-c", 2), ("0, 2", 2), ("", 0), ("GPU-x", 0)]
)
def test_only_visible_gpus_count(visible: str | None, count: int) -> None:
    assert len(gpus_of(LISTING, visible)) == count


@pytest.mark.parametrize(
    ("visible", "name", "free"),
    [(None, "NVIDIA H200", 140000), ("1", "NVIDIA H200", 100000), ("GPU-a", "NVIDIA L4", 20000)],
)
def test_the_largest_visible_gpu_counts(visible: str | None, name: str, free: int) -> None:
    found = largest(gpus_of(LISTING, visible))
    assert found is not None
    assert (found[0], found[2]) == (name, free << 20)


@pytest.mark.parametrize(
    ("listing", "visible"), [(LISTING, ""), ("", None), ("0, GPU-a, X, [N/A], [N/A], 9.0\n", None)]
)
def test_without_a_visible_gpu_that_tells_its_memory_there_is_none(listing: str, visible: str | None) -> None:
    assert largest(gpus_of(listing, visible)) is None


@pytest.mark.parametrize(("capability", "expected"), [("7.5", False), ("8.0", True), ("12.0", True), ("[N/A]", True)])
def test_old_gpus_have_no_bfloat16(capability: str, expected: bool) -> None:
    (gpu,) = gpus_of(f"0, GPU-a, Tesla T4, 15360, 15000, {capability}\n", None)
    assert gpu.has_bfloat16 == expected


def test_a_gpu_that_torch_cannot_use_is_no_reason_to_train_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a driver that is too old: torch only warns, and a run of minutes would take days."""
    monkeypatch.setattr(model, "visible_gpus", lambda: gpus_of(LISTING, "1"))
    with pytest.raises(InfrastructureFailed, match="NVIDIA H200"):
        model.choose_hardware()
