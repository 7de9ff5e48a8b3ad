"""What the command line draws."""

from __future__ import annotations

import pytest

from tests.support.fake_api import FakeApi
from tunesmith._cli_output import FollowDisplay, print_table, printable
from tunesmith.types import FineTune, FineTuneEvent


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make standard output count as a terminal of 100 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")


def job_at(step: int) -> FineTune:
    """A running job at this of nine steps."""
    progress = {"phase": "training", "step": step, "total_steps": 9, "remaining_seconds": 125.0}
    api = FakeApi()
    return FineTune.model_validate(api.jobs[api.add_job(status="running", progress=progress)])


def metrics(step: int) -> FineTuneEvent:
    """The metrics of a step."""
    data = {"step": step, "total_steps": 9, "train_loss": 1.25, "tokens": 300, "seconds": 2}
    return FineTuneEvent(id=f"ftevent-{step}", created_at=1, level="info", message="", type="metrics", data=data)


@pytest.mark.usefixtures("terminal")
class TestFollowDisplay:
    def test_a_live_line_with_numbers_and_time_left(self, capsys: pytest.CaptureFixture[str]) -> None:
        with FollowDisplay() as display:
            display.show(job_at(3), [metrics(3)])
        drawn = capsys.readouterr().out
        for part in ("training", "3/9", "loss 1.2500", "150 tokens/s", "0:02:05 left"):
            assert part in drawn

    def test_messages_stand_above_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        warning = FineTuneEvent(id="ftevent-1", created_at=1, level="warn", message="Row 7 [red]was cut\x1b[2J.")
        with FollowDisplay() as display:
            display.show(job_at(0), [warning])
        drawn = capsys.readouterr().out
        assert "Row 7 [red]was cut[2J." in drawn
        assert "\x1b[2J" not in drawn


def test_the_time_left_stands_beside_the_newest_step_only(capsys: pytest.CaptureFixture[str]) -> None:
    with FollowDisplay() as display:
        display.show(job_at(2), [metrics(1), metrics(2)])
        display.show(job_at(4), [metrics(3), metrics(4)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith(" · 0:02:05 left") for line in lines] == [False, False, False, True]


class TestPrintTable:
    def test_columns_are_aligned_and_whole(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_table(("ID", "NAME"), [("a", "x" * 300), ("long-id", None)])
        assert capsys.readouterr().out.splitlines() == ["ID       NAME", f"a        {'x' * 300}", "long-id"]

    def test_without_rows(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_table(("ID", "NAME"), [])
        assert capsys.readouterr().out == "ID  NAME\n"


def test_printable_drops_what_steers_a_terminal() -> None:
    assert printable("a\x1b[2J\x07\x9b\r\x00é\n\tü") == "a[2Jé\n\tü"
