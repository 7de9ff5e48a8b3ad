"""Uploads go on beside the training; nothing of them is lost, whatever ends the run."""

import threading
from pathlib import Path

import pytest
import torch

from tests.support.training_server import TrainingServer
from tests.trainer.conftest import RunAttempt
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer import checkpoint
from tunesmith_trainer.background import Background
from tunesmith_trainer.objectives import Scored, score
from tunesmith_trainer.packing import Pack

LIMIT_SECONDS = 60


def test_a_failure_is_raised_once_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise OSError("full")

    background = Background()
    background.start(fail)
    background.settle()
    with pytest.raises(OSError, match="full"):
        background.start(fail)
    background.wait()


def test_training_goes_on_while_a_checkpoint_is_committed(server: TrainingServer, run_attempt: RunAttempt) -> None:
    went_on = threading.Event()
    held: list[bool] = []

    def notice(request: pb.HeartbeatRequest) -> None:
        if any(one.step > 5 for one in request.metrics):
            went_on.set()

    server.on_heartbeat = notice
    server.on_commit = lambda: held.append(went_on.wait(LIMIT_SECONDS))

    assert run_attempt(server) == 0
    assert held == [True, True]
    assert [commit.step for commit in server.checkpoints] == [5, 10]


def test_who_launched_the_run_is_told_to_let_an_upload_end(
    server: TrainingServer, run_attempt: RunAttempt, tmp_path: Path
) -> None:
    """By a file, see `launch`; what comes of it is tested there."""
    held: list[bool] = []

    def look() -> None:
        held.append(any(tmp_path.glob("work-*/shielded")))

    server.on_commit = look

    assert run_attempt(server) == 0
    look()
    assert held == [True, True, False]


def test_a_checkpoint_under_way_is_committed_before_the_run_fails(
    server: TrainingServer, run_attempt: RunAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save_state
    saved, committing, spoilt = threading.Event(), threading.Event(), threading.Event()

    def save_state(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        saved.set()

    def score_until_it_spoils(model: torch.nn.Module, batch: Pack) -> Scored:
        scored = score(model, batch)
        if not (torch.is_grad_enabled() and saved.is_set()):
            return scored
        assert committing.wait(LIMIT_SECONDS)
        spoilt.set()
        return Scored(scored.total * float("nan"), scored.losses, scored.hits)

    def hold() -> None:
        committing.set()
        assert spoilt.wait(LIMIT_SECONDS)

    monkeypatch.setattr("tunesmith_trainer.training.checkpoint.save_state", save_state)
    monkeypatch.setattr("tunesmith_trainer.methods.score", score_until_it_spoils)
    server.on_commit = hold

    assert run_attempt(server) == 65
    assert server.failed is not None
    assert [commit.step for commit in server.checkpoints] == [5]
