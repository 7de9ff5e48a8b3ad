"""The example for OpenAI's own client goes the whole way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from examples import openai_client
from examples.local_platform import local_platform


def test_it_follows_the_job_and_asks_the_tuned_model(
    simulate: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate("good")
    monkeypatch.setattr(openai_client, "POLL_S", 0.01)
    with local_platform(tmp_path, keep=False) as platform:
        monkeypatch.setenv("TUNESMITH_BASE_URL", platform.url)
        monkeypatch.setenv("TUNESMITH_API_KEY", platform.api_key)
        assert openai_client.main() == 0
    assert capsys.readouterr().out.splitlines() == ["batch_size is 8", "I am sorry."]
