"""What users read of a job's history: pages, streams that lose and repeat nothing, checkpoints, metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.factories import PRINCIPAL, Platform, step_report
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.fine_tunes.history import HistoryService


async def test_events_are_newest_first_and_continue_after_an_event(platform: Platform) -> None:
    identity = await platform.start_training()
    metrics = [step_report(step) for step in (1, 2, 3)]
    heartbeat = pb.HeartbeatRequest(sequence=1, phase="training", step=3, total_steps=6, metrics=metrics)
    await platform.training.heartbeat(identity, heartbeat)
    seen = [event async for event in all_events(platform.history, identity.job_id)]

    assert [event.message for event in reversed(seen)] == [
        f"Created fine-tuning job: {identity.job_id}",
        f"Validating training file: {platform.training_file}",
        "Automatic settings: n_epochs = 3 (10 rows)",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        *(f"Step {step}/6: training loss=1.50" for step in (1, 2, 3)),
    ]
    assert [event.type for event in seen[:4]] == ["metrics"] * 3 + ["message"]
    assert seen[0].data == {
        "step": 3,
        "total_steps": 6,
        "train_loss": 1.5,
        "train_mean_token_accuracy": 0.5,
        "valid_loss": None,
        "valid_mean_token_accuracy": None,
        "full_valid_loss": None,
        "full_valid_mean_token_accuracy": None,
    }
    with pytest.raises(InvalidRequestError):
        await platform.history.list_events(PRINCIPAL, identity.job_id, after="ftevent-unknown")


async def all_events(service: HistoryService, job_id: str) -> AsyncIterator[Any]:
    """Every event, newest first, read in pages of two."""
    after = None
    while True:
        page = await service.list_events(PRINCIPAL, job_id, after=after, limit=2)
        for event in page.data:
            yield event
        if not page.has_more:
            return
        after = page.data[-1].id


async def test_metrics_are_paged_by_step(each_platform: Platform) -> None:
    identity = await each_platform.start_training()
    metrics = [step_report(step, valid_loss=2.0) if step == 2 else step_report(step) for step in (1, 2, 3)]
    heartbeat = pb.HeartbeatRequest(sequence=1, phase="training", step=3, total_steps=6, metrics=metrics)
    await each_platform.training.heartbeat(identity, heartbeat)

    first = await each_platform.history.list_metrics(PRINCIPAL, identity.job_id, limit=2)
    rest = await each_platform.history.list_metrics(PRINCIPAL, identity.job_id, after=first.last_step or 0)

    assert [each.step for each in first.data + rest.data] == [1, 2, 3]
    assert (first.has_more, rest.has_more, rest.last_step) == (True, False, 3)
    assert first.data[1].model_dump() == {
        "object": "fine_tuning.job.metrics",
        "step": 2,
        "train_loss": 1.5,
        "train_mean_token_accuracy": 0.5,
        "valid_loss": 2.0,
        "valid_mean_token_accuracy": None,
        "full_valid_loss": None,
        "full_valid_mean_token_accuracy": None,
        "learning_rate": 0.0,
        "tokens": 100,
        "seconds": 1.0,
    }


@pytest.mark.parametrize(("after", "limit"), [(-1, 10), (2**31, 10), (0, 0), (0, 1001)])
async def test_pages_of_metrics_have_limits(platform: Platform, after: int, limit: int) -> None:
    job_id = await platform.create()
    with pytest.raises(InvalidRequestError):
        await platform.history.list_metrics(PRINCIPAL, job_id, after=after, limit=limit)


@pytest.mark.parametrize("cursor", ["ftevent-unknown", "\x00"])
async def test_a_stream_after_an_unknown_event_is_refused(platform: Platform, cursor: str) -> None:
    job_id = await platform.create()
    with pytest.raises(InvalidRequestError) as caught:
        await platform.history.follow_events(PRINCIPAL, job_id, after=cursor)
    assert caught.value.code == "invalid_cursor"
