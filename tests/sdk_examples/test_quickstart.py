"""The quickstart's exit status tells the truth, and it cleans up after itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples import quickstart
from examples.progress_line import ProgressLine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "quickstart"
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--rows", "20", "--folder", str(folder)])
    return folder


def test_a_better_model_is_a_success_with_a_report(
    simulate: Callable[[str], None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate("good")
    assert quickstart.main() == 0
    output = capsys.readouterr().out
    assert "served (40 rows)" in output
    assert "100%" in output
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.index("the job's report") < page.index("Before and after, as served")
    assert "0% →</span> 100%" in page
    assert (folder / "support_tickets_train_20.jsonl").read_bytes().count(b"\n") == 20


def test_a_model_that_is_no_better_is_a_failure_with_a_report(
    simulate: Callable[[str], None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate("useless")
    assert quickstart.main() == 1
    assert "does not beat the base model" in capsys.readouterr().err
    assert (folder / "report.html").exists()


def test_a_failed_job_is_a_failure_that_names_reason_and_log(
    simulate: Callable[[str], None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate("failing")
    assert quickstart.main() == 1
    errors = capsys.readouterr().err
    assert "Too big." in errors
    assert str(folder / "platform.log") in errors


def test_an_interruption_cancels_the_job_before_the_platform_stops(
    simulate: Callable[[str], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate("endless")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ProgressLine, "show", interrupt)
    assert quickstart.main() == 130
    assert (folder / "home" / "cancelled").exists()
    assert not (folder / "platform.url").exists()


@pytest.mark.parametrize("rows", ["9", "1001", "-5"])
def test_impossible_numbers_of_rows_are_refused(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--rows", rows])
    with pytest.raises(SystemExit):
        quickstart.main()
