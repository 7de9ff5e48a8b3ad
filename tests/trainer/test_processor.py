"""The processor's dtype: measured, and never tried where trying would kill the run."""

from pathlib import Path

import pytest

from tunesmith_trainer import processor


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """What a processor with tile instructions says of itself."""
    path = tmp_path / "cpuinfo"
    path.write_text("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n")
    return path


def test_the_faster_dtype_comes_with_its_speed() -> None:
    dtype, operations_per_second, reason = processor.choose_cpu_dtype()

    assert dtype in ("float32", "bfloat16")
    assert operations_per_second > 1e8
    assert "ms" in reason or "does not run" in reason


def test_tile_instructions_are_tried_elsewhere_first(tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tiles.parent / "python"
    killed.write_text("#!/bin/sh\nkill -ILL $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(killed))

    assert processor.runs_bfloat16(tiles) is False


def test_without_tile_instructions_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere")
    plain = tmp_path / "plain"
    plain.write_text("flags : fpu avx2\n")

    assert processor.runs_bfloat16(plain)
    assert processor.runs_bfloat16(tmp_path / "absent")
