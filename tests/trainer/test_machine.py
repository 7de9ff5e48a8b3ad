"""What a machine offers, told from listings and files as they are found on real ones."""

from pathlib import Path

import pytest

from tunesmith_trainer.machine import main_memory, survey

MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    9000 kB\nHugePages_Total:       0\n"


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


def test_a_preflight_without_a_gpu_plans_for_the_one_that_it_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    monkeypatch.setenv("TUNESMITH_GPU", "NVIDIA H200, 143771")
    machine = survey()
    assert (machine.device, machine.is_gpu, machine.dtype) == ("NVIDIA H200", True, "bfloat16")
    assert machine.available == machine.capacity == 143771 << 20


def written(folder: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """The files of a machine."""
    (folder / "meminfo").write_text(MEMINFO)
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder / "meminfo", folder
