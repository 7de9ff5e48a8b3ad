from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tunesmith_inference import config
from tunesmith_inference.config import Device, Settings


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CONTROL_PLANE", "plane:1")
    monkeypatch.setenv("TUNESMITH_SERVICE_TOKEN", "secret")
    monkeypatch.setenv("TUNESMITH_CACHE_DIR", "~/models")
    settings = Settings()
    assert settings.control_plane == "plane:1"
    assert settings.cache_dir == Path("~/models").expanduser()
    assert "secret" not in repr(settings)
    with pytest.raises(ValidationError):
        settings.control_plane = "other"  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(("wanted", "used"), [(1, 1), (2, 8), (8, 8), (24, 32), (100, 128), (512, 512)])
def test_a_rank_is_rounded_up_to_one_the_engine_knows(wanted: int, used: int) -> None:
    assert Settings(max_lora_rank=wanted).max_lora_rank == used


def test_a_rank_beyond_the_engines_largest_is_refused() -> None:
    with pytest.raises(ValidationError):
        Settings(max_lora_rank=513)


def test_a_virtual_environments_interpreter_keeps_its_own_name(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to("/bin/sh")
    assert Settings(engine_python=link).engine_python == link


def test_the_device_can_be_said() -> None:
    assert Settings(engine_device=Device.CUDA).device is Device.CUDA


def test_defaults_follow_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_NVIDIA_DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert (Settings().device, Settings().kv_cache_gib, Settings().max_lora_rank) == (Device.CUDA, 8, 64)
    assert Settings(engine_device=Device.CPU).kv_cache_gib == 1
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert (Settings().device, Settings().kv_cache_gib, Settings().max_lora_rank) == (Device.CPU, 1, 16)
    assert Settings(engine_device=Device.CUDA).kv_cache_gib == 8


@pytest.mark.parametrize("url", ["moderation.example.org", "ftp://example.org", "http://", "http://[", "file:///etc"])
def test_hooks_are_at_urls(url: str) -> None:
    with pytest.raises(ValidationError):
        Settings(moderation_url=url)
    with pytest.raises(ValidationError):
        Settings(redaction_url=url)
    assert Settings(moderation_url="https://example.org/v1/moderations", redaction_url="").moderation_url
