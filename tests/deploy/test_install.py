"""The set-up of a checkout: which build it takes, and what it asks for on a machine with a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
VERSION = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build\nGCC version:  gcc version 12.3.0\n"
)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module, on a machine whose driver is current."""
    spec = importlib.util.spec_from_file_location("install", ROOT / "deploy" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    driver = tmp_path / "version"
    driver.write_text(VERSION.format("580.65.06"))
    monkeypatch.setattr(module, "DRIVER", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    headers = tmp_path / "include"
    headers.mkdir()
    (headers / "Python.h").touch()
    monkeypatch.setattr(module, "include_folder", lambda: headers)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    return module


def test_a_gpu_is_used_unless_it_is_hidden(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert install.has_gpu()
    assert install.missing_for_gpu() == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not install.has_gpu()


def test_an_old_driver_is_named(install: ModuleType) -> None:
    install.DRIVER.write_text(VERSION.format("535.183.01"))
    assert install.missing_for_gpu().startswith("The NVIDIA driver is 535.183; torch and vLLM need 580 or newer.")


def test_what_the_engine_compiles_with_is_asked_for(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "include" / "Python.h").unlink()
    assert "python3-dev" in install.missing_for_gpu()
    (tmp_path / "include" / "Python.h").touch()
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "gcc" in install.missing_for_gpu()


def test_nothing_is_installed_on_a_machine_that_lacks_something(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install.DRIVER.write_text(VERSION.format("535.183.01"))
    monkeypatch.setattr(install, "run_together", lambda *_: pytest.fail("it was installed"))
    monkeypatch.setattr(sys, "argv", ["install.py"])
    assert install.main() == 1
    assert "CUDA_VISIBLE_DEVICES" in capsys.readouterr().err


def test_an_environment_for_another_device_is_made_anew(install: ModuleType, tmp_path: Path) -> None:
    folder, inputs = tmp_path / "environment", [ROOT / "pyproject.toml"]

    def environment(*, gpu: bool) -> object:
        return install.Environment("engine", folder, tmp_path / "none", locked=True, gpu=gpu)

    pip = folder / "bin" / "pip"
    pip.parent.mkdir(parents=True)
    pip.touch()
    environment(gpu=False).mark_current(inputs)  # type: ignore[attr-defined]
    assert environment(gpu=False).is_current(inputs)  # type: ignore[attr-defined]
    assert not environment(gpu=True).is_current(inputs)  # type: ignore[attr-defined]
    environment(gpu=False).create()  # type: ignore[attr-defined]
    assert pip.read_bytes() == b"", "for the same device it is filled further"
    environment(gpu=False).mark_current(inputs)  # type: ignore[attr-defined]
    environment(gpu=True).create()  # type: ignore[attr-defined]
    assert pip.read_bytes() != b"", "what fits the other device is gone"
    pip.write_bytes(b"")
    environment(gpu=True).mark_begun()  # type: ignore[attr-defined]
    environment(gpu=False).create()  # type: ignore[attr-defined]
    assert pip.read_bytes() != b"", "also what was begun for it"
