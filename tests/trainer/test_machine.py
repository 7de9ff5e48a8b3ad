"""What a machine offers, told from listings and files as they are found on real ones."""

from pathlib import Path

import pytest

from tunesmith_trainer.machine import largest_of, main_memory, survey

LISTING = (
    "0, GPU-a, NVIDIA L4, 23034, 20000\n1, GPU-b, NVIDIA H200, 143771, 100000\n2, GPU-c, NVIDIA H200, 143771, 140000\n"
)
MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    9000 kB\nHugePages_Total:       0\n"


@pytest.mark.parametrize(
    ("visible", "name", "free"),
    [(None, "NVIDIA H200", 140000), ("1", "NVIDIA H200", 100000), ("GPU-a", "NVIDIA L4", 20000)],
)
def test_the_largest_visible_gpu_counts(visible: str | None, name: str, free: int) -> None:
    found = largest_of(LISTING, visible)
    assert found is not None
    assert (found[0], found[2]) == (name, free << 20)


@pytest.mark.parametrize(("listing", "visible"), [(LISTING, ""), ("", None), ("0, GPU-a, X, [N/A], [N/A]\n", None)])
def test_without_a_visible_gpu_there_is_none(listing: str, visible: str | None) -> None:
    assert largest_of(listing, visible) is None


def test_main_memory_is_the_machines_where_no_limit_is_set(tmp_path: Path) -> None:
    meminfo, cgroup = written(tmp_path, {"memory.max": "max\n"})
    assert main_memory(meminfo, cgroup) == (16000 << 10, 9000 << 10)


def test_a_containers_limit_counts_and_cached_files_make_room(tmp_path: Path) -> None:
    files = {
        "memory.max": f"{8000 << 10}\n",
        "memory.current": f"{5000 << 10}\n",
        "memory.stat": f"anon 1\ninactive_file {1000 << 10}\n",
    }
    meminfo, cgroup = written(tmp_path, files)
    assert main_memory(meminfo, cgroup) == (8000 << 10, 4000 << 10)


def test_this_machine_has_memory_and_speed() -> None:
    machine = survey()
    assert 0 < machine.available <= machine.capacity
    assert machine.is_gpu or (machine.flops is not None and machine.flops > 1e8)


def written(folder: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """The files of a machine."""
    (folder / "meminfo").write_text(MEMINFO)
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder / "meminfo", folder
