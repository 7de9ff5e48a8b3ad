"""The platform that the quickstart starts is always stopped again, unless it is to be kept."""

from __future__ import annotations

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.local_platform import PlatformFailed, local_platform


def serves(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
    except urllib.error.URLError:
        return False
    return True


def test_it_serves_inside_and_is_gone_afterwards(simulate: Callable[[str], None], tmp_path: Path) -> None:
    simulate("good")
    with local_platform(tmp_path / "q", keep=False) as platform:
        assert serves(platform.url)
        assert platform.api_key == "sk-simulated"
    assert not serves(platform.url)


def test_a_failure_stops_it_even_if_it_was_to_be_kept(simulate: Callable[[str], None], tmp_path: Path) -> None:
    simulate("good")
    with pytest.raises(KeyboardInterrupt), local_platform(tmp_path / "q", keep=True) as platform:
        raise KeyboardInterrupt
    assert not serves(platform.url)


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # it is meant to
def test_a_kept_one_goes_on_and_is_not_started_twice(simulate: Callable[[str], None], tmp_path: Path) -> None:
    simulate("good")
    with local_platform(tmp_path / "q", keep=True) as platform:
        pass
    try:
        assert serves(platform.url)
        with pytest.raises(PlatformFailed, match="still serves"), local_platform(tmp_path / "q", keep=False):
            pass
    finally:
        os.kill(platform.process_id, signal.SIGTERM)
        os.waitpid(platform.process_id, 0)
    with local_platform(tmp_path / "q", keep=False) as another:
        assert serves(another.url)


def test_one_that_cannot_start_says_so_and_leaves_its_log(simulate: Callable[[str], None], tmp_path: Path) -> None:
    simulate("broken")
    with pytest.raises(PlatformFailed, match="exit status 1"), local_platform(tmp_path / "q", keep=False):
        pass
    assert "cannot start" in (tmp_path / "q" / "platform.log").read_text()


def test_settings_of_another_installation_do_not_leak_in(
    simulate: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate("good")
    monkeypatch.setenv("TUNESMITH_API_KEY", "sk-other")
    monkeypatch.setenv("TUNESMITH_CACHE_DIR", "/cache")
    with local_platform(tmp_path / "q", keep=False) as platform:
        environment = Path(f"/proc/{platform.process_id}/environ").read_bytes()
    assert b"TUNESMITH_API_KEY" not in environment
    assert b"TUNESMITH_CACHE_DIR=/cache" in environment
