"""`client.fine_tunes`."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.conftest import Pauses
from tests.support.fake_api import FakeApi
from tunesmith import (
    APIConnectionError,
    AsyncTunesmith,
    BadRequestError,
    FineTuneFailedError,
    NotFoundError,
    Tunesmith,
    WaitTimeoutError,
    _patience,
)
from tunesmith.types import FineTune

MODEL = "smollm2-135m-instruct"
TUNED = f"ft:{MODEL}:default:tickets:abcd1234"


def plan(api: FakeApi, *steps: Callable[[str], object]) -> str:
    """Store a job to which one of these happens each time it is read; return its id."""
    job_id = api.add_job()
    api.futures[job_id] = deque(functools.partial(step, job_id) for step in steps)
    return job_id


def becoming(api: FakeApi, status: str, **values: object) -> Callable[[str], object]:
    """A step after which the job has this status, and an event tells so."""

    def step(job_id: str) -> None:
        api.jobs[job_id] |= {"status": status, **values}
        api.add_event(job_id, f"now {status}")

    return step


class TestCreate:
    def test_what_is_left_out_is_not_sent(self, api: FakeApi, client: Tunesmith) -> None:
        job = client.fine_tunes.create(model=MODEL, training_file="file-abc")
        assert job.status == "queued"
        assert api.received[0].path == "/v1/fine_tuning/jobs"
        assert api.received[0].json == {
            "model": MODEL,
            "training_file": "file-abc",
            "method": {"type": "supervised", "supervised": {"hyperparameters": {}}},
        }

    def test_everything(self, api: FakeApi, client: Tunesmith) -> None:
        client.fine_tunes.create(
            model=MODEL,
            training_file="file-abc",
            validation_file="file-def",
            suffix="tickets",
            seed=7,
            n_epochs=2,
            batch_size="auto",
            learning_rate_multiplier=0.5,
            beta=0.2,
            method="dpo",
            weights="lora",
            lora_rank=16,
            lora_alpha=32.0,
            lora_targets=("attention",),
            use_rslora=True,
            metadata={"team": "support"},
            integrations=[{"type": "wandb", "wandb": {"project": "tickets"}}],
        )
        assert api.received[0].json == {
            "model": MODEL,
            "training_file": "file-abc",
            "validation_file": "file-def",
            "suffix": "tickets",
            "seed": 7,
            "method": {
                "type": "dpo",
                "dpo": {
                    "hyperparameters": {
                        "n_epochs": 2,
                        "batch_size": "auto",
                        "learning_rate_multiplier": 0.5,
                        "beta": 0.2,
                    }
                },
            },
            "training": {
                "weights": "lora",
                "lora_rank": 16,
                "lora_alpha": 32.0,
                "lora_targets": ["attention"],
                "use_rslora": True,
            },
            "metadata": {"team": "support"},
            "integrations": [{"type": "wandb", "wandb": {"project": "tickets"}}],
        }

    def test_from_a_tuned_model_of_the_project(self, api: FakeApi, client: Tunesmith) -> None:
        tuned = "ft:smollm2-135m-instruct:default:tickets:abcd1234"
        with pytest.raises(NotFoundError) as caught:
            client.fine_tunes.create(model=tuned, training_file="file-abc", method="dpo")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        api.models[tuned] = api.models[MODEL] | {"id": tuned}

        job = client.fine_tunes.create(model=tuned, training_file="file-abc", method="dpo", use_rslora=True)

        assert job.model == tuned
        assert job.training is not None
        assert job.training.use_rslora is True

    def test_a_whole_method_object(self, api: FakeApi, client: Tunesmith) -> None:
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
        client.fine_tunes.create(model=MODEL, training_file="file-abc", method=method)
        assert api.received[0].json["method"] == method
        with pytest.raises(ValueError, match="n_epochs"):
            client.fine_tunes.create(model=MODEL, training_file="file-abc", method=method, n_epochs=2)

    def test_local_paths_are_uploaded_once(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        rows, held_out = tmp_path / "rows.jsonl", tmp_path / "file-heldout.jsonl"
        rows.write_text("{}\n")
        held_out.write_text("{}\n{}\n")
        for _ in range(2):
            job = client.fine_tunes.create(model=MODEL, training_file=str(rows), validation_file=held_out)
            assert api.files[job.training_file][1] == rows.read_bytes()
            assert job.validation_file is not None
            assert api.files[job.validation_file][1] == held_out.read_bytes()
        assert api.paths("POST").count("/v1/files") == 2

    def test_neither_id_nor_path(self, api: FakeApi, client: Tunesmith) -> None:
        with pytest.raises(FileNotFoundError, match=r"Neither the id .* 'rows\.jsonl'"):
            client.fine_tunes.create(model=MODEL, training_file="rows.jsonl")
        assert api.received == []

    def test_a_refusal_names_the_parameter(self, client: Tunesmith) -> None:
        with pytest.raises(BadRequestError) as caught:
            client.fine_tunes.create(model="gpt-9", training_file="file-abc")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


class TestOtherVerbs:
    def test_retrieve_list_cancel(self, api: FakeApi, client: Tunesmith) -> None:
        job_id = api.add_job(new_field="from a newer server")
        job = client.fine_tunes.retrieve(job_id)
        assert (job.id, job.finished, job.error) == (job_id, False, None)
        assert job.model_extra is not None
        assert job.model_extra["new_field"] == "from a newer server"
        assert [listed.id for listed in client.fine_tunes.list(metadata={"team": "support"})] == [job_id]
        assert api.received[-1].query == {"metadata[team]": "support"}
        assert client.fine_tunes.cancel(job_id).finished

    def test_pause_and_resume(self, api: FakeApi, client: Tunesmith) -> None:
        job_id = api.add_job()
        assert client.fine_tunes.pause(job_id).status == "paused"
        assert client.fine_tunes.resume(job_id).status == "queued"

    def test_a_report(self, api: FakeApi, client: Tunesmith) -> None:
        assert client.fine_tunes.report("ftjob-1") == "<!doctype html><title>ftjob-1 – report</title>"

    def test_logs(self, api: FakeApi, client: Tunesmith) -> None:
        assert client.fine_tunes.logs("ftjob-1") == "attempt newest\n"
        assert client.fine_tunes.logs("ftjob-1", attempt=2, tail_bytes=10) == "attempt 2\n"
        assert api.received[-1].query == {"attempt": "2", "tail_bytes": "10"}

    def test_an_estimate_asks_like_create(self, api: FakeApi, client: Tunesmith) -> None:
        estimate = client.fine_tunes.estimate(
            model=MODEL, training_file="file-abc", n_epochs=2, priority=5, auto_start=False, wait_seconds=1
        )
        assert (estimate.status, estimate.trained_tokens) == ("ready", 600)
        assert estimate.queue is not None
        assert estimate.queue.position == 2
        assert api.received[0].query == {"wait_seconds": "1"}
        assert api.received[0].json == {
            "model": MODEL,
            "training_file": "file-abc",
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
            "auto_start": False,
            "scheduling": {"priority": 5},
        }
        assert client.fine_tunes.retrieve_estimate(estimate.id) == estimate

    def test_an_estimate_is_waited_for(self, api: FakeApi, client: Tunesmith, pauses: Pauses) -> None:
        estimate = client.fine_tunes.estimate(model=MODEL, training_file="file-abc")
        api.estimates[estimate.id]["status"] = "validating_files"
        with pytest.raises(WaitTimeoutError, match=f"{estimate.id} was still validating_files after 0 seconds"):
            client.fine_tunes.wait_for_estimate(estimate.id, timeout=0)
        pauses.on_pause = lambda number: number == 2 and api.estimates[estimate.id].update(status="failed")
        assert client.fine_tunes.wait_for_estimate(estimate.id, poll_interval=3).status == "failed"
        assert pauses.lengths == [3, 3]

    def test_a_file_may_be_what_the_upload_returned(self, api: FakeApi, client: Tunesmith) -> None:
        file = client.files.create(file=b"{}")
        client.fine_tunes.create(model=MODEL, training_file=file, validation_file=file)
        assert (api.received[-1].json["training_file"], api.received[-1].json["validation_file"]) == (file.id, file.id)

    @pytest.mark.parametrize("name", ["training_file", "validation_file"])
    def test_what_is_no_file_is_named(self, client: Tunesmith, tmp_path: Path, name: str) -> None:
        with (tmp_path / "rows.jsonl").open("wb+") as stream:
            asked: Any = {"model": MODEL, "training_file": "file-abc", name: stream}
            with pytest.raises(TypeError) as caught:
                client.fine_tunes.create(**asked)
        assert str(caught.value) == (
            f"{name} is a path, a file's id or a File, not BufferedRandom: upload it by client.files.create first."
        )

    def test_unknown_arguments_are_refused(self, client: Tunesmith) -> None:
        with pytest.raises(TypeError, match="epochs"):
            client.fine_tunes.create(model=MODEL, training_file="file-abc", epochs=2)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="model"):
            client.fine_tunes.create(training_file="file-abc")  # type: ignore[call-arg]

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_a_number_that_is_none_is_named(self, api: FakeApi, client: Tunesmith, number: float) -> None:
        with pytest.raises(ValueError, match="learning_rate_multiplier must be a finite number"):
            client.fine_tunes.create(model=MODEL, training_file="file-abc", learning_rate_multiplier=number)
        assert api.received == []

    def test_checkpoints(self, api: FakeApi, client: Tunesmith) -> None:
        job_id = api.add_job()
        for step in (10, 20):
            api.checkpoints[job_id].append(
                {
                    "id": f"ftckpt_{step}",
                    "object": "fine_tuning.job.checkpoint",
                    "created_at": 1_700_000_000,
                    "fine_tuning_job_id": job_id,
                    "fine_tuned_model_checkpoint": f"{TUNED}:ckpt-step-{step}",
                    "step_number": step,
                    "metrics": {"step": step, "train_loss": 1.5, "valid_loss": None},
                }
            )
        checkpoints = list(client.fine_tunes.checkpoints(job_id))
        assert [checkpoint.step_number for checkpoint in checkpoints] == [20, 10]
        assert checkpoints[0].metrics["train_loss"] == 1.5


class TestEvents:
    def test_oldest_first_over_several_pages(self, api: FakeApi, client: Tunesmith) -> None:
        job_id = api.add_job()
        for number in range(250):
            api.add_event(job_id, f"event {number}")
        assert [event.message for event in client.fine_tunes.events(job_id)] == [f"event {n}" for n in range(250)]
        assert len(api.received) == 3

    def test_following_ends_with_the_job_and_repeats_nothing(self, api: FakeApi, client: Tunesmith) -> None:
        job_id = plan(
            api, becoming(api, "queued"), lambda job_id: None, becoming(api, "running"), becoming(api, "succeeded")
        )
        messages = [event.message for event in client.fine_tunes.events(job_id, follow=True)]
        assert messages == ["now queued", "now running", "now succeeded"]

    def test_more_new_events_than_a_page_holds(self, api: FakeApi, client: Tunesmith) -> None:
        def burst(job_id: str) -> None:
            for number in range(230):
                api.add_event(job_id, f"step {number}")

        job_id = plan(api, becoming(api, "running"), burst, becoming(api, "succeeded"))
        messages = [event.message for event in client.fine_tunes.events(job_id, follow=True)]
        assert messages == ["now running", *(f"step {n}" for n in range(230)), "now succeeded"]

    def test_an_event_that_was_committed_late_is_not_lost(self, api: FakeApi, client: Tunesmith) -> None:
        def late(job_id: str) -> None:
            api.add_event(job_id, "late")
            api.events[job_id][-2:] = api.events[job_id][:-3:-1]

        job_id = plan(api, becoming(api, "running"), late, becoming(api, "succeeded"))
        messages = [event.message for update in client.fine_tunes.follow(job_id) for event in update.events]
        assert messages == ["now running", "late", "now succeeded"]

    def test_following_outlasts_a_restart(self, api: FakeApi, client: Tunesmith, pauses: Pauses) -> None:
        job_id = plan(api, becoming(api, "queued"), becoming(api, "running"), becoming(api, "succeeded"))
        messages = []
        pauses.on_pause = lambda number: api.start() if number == 20 else None
        for event in client.fine_tunes.events(job_id, follow=True):
            messages.append(event.message)
            if event.message == "now running":
                api.stop()
        assert messages == ["now queued", "now running", "now succeeded"]
        assert len(pauses.lengths) >= 20

    def test_no_server_at_the_start_is_told_at_once(self, api: FakeApi, client: Tunesmith) -> None:
        api.stop()
        with pytest.raises(APIConnectionError):
            next(client.fine_tunes.events("ftjob-1", follow=True))

    def test_unknown_job(self, client: Tunesmith) -> None:
        with pytest.raises(NotFoundError):
            next(client.fine_tunes.events("ftjob-none", follow=True))

    async def test_async_twin(self, api: FakeApi, async_client: AsyncTunesmith, pauses: Pauses) -> None:
        job_id = plan(api, becoming(api, "running"), becoming(api, "succeeded"))
        messages = []
        async for event in async_client.fine_tunes.events(job_id, follow=True):
            messages.append(event.message)
            if event.message == "now running":
                api.stop()
                pauses.on_pause = lambda number: api.start() if number == 10 else None
        assert messages == ["now running", "now succeeded"]

    def test_a_reader_that_stops_early_gives_its_connection_back(self, api: FakeApi, client: Tunesmith) -> None:
        job_id = api.add_job(status="succeeded")
        for number in range(3):
            api.add_event(job_id, f"event {number}")
        events = client.fine_tunes.events(job_id, follow=True)
        assert next(events).message == "event 0"
        assert isinstance(events, Generator)
        events.close()
        assert client.fine_tunes.retrieve(job_id).id == job_id


class TestFollow:
    def test_each_update_has_the_job_as_it_is(self, api: FakeApi, client: Tunesmith) -> None:
        job_id = plan(api, becoming(api, "running"), lambda job_id: None, becoming(api, "succeeded"))
        updates = [(u.fine_tune.status, len(u.events)) for u in client.fine_tunes.follow(job_id)]
        assert updates == [("running", 1), ("running", 0), ("succeeded", 1)]


class TestWait:
    def test_until_the_end_with_progress(self, api: FakeApi, client: Tunesmith, pauses: Pauses) -> None:
        progress = {"phase": "training", "step": 5, "total_steps": 10, "remaining_seconds": 60.0}
        job_id = plan(
            api,
            becoming(api, "queued"),
            becoming(api, "running", progress=progress),
            lambda job_id: None,
            becoming(api, "succeeded", progress=None, fine_tuned_model=TUNED),
        )
        seen: list[tuple[str, int | None]] = []

        def on_progress(job: FineTune) -> None:
            seen.append((job.status, job.progress.step if job.progress else None))

        job = client.fine_tunes.wait(job_id, on_progress=on_progress, poll_interval=3)
        assert (job.status, job.fine_tuned_model) == ("succeeded", TUNED)
        assert seen == [("queued", None), ("running", 5), ("succeeded", None)]
        assert pauses.lengths == [3, 3, 3]

    def test_a_failure_is_raised_with_its_reason(self, api: FakeApi, client: Tunesmith) -> None:
        reason = {"code": "row_too_long", "message": "Row 7 has 9000 tokens.", "param": "training_file"}
        job_id = plan(api, becoming(api, "failed", error=reason))
        with pytest.raises(FineTuneFailedError, match=r"failed: Row 7 has 9000 tokens\.") as caught:
            client.fine_tunes.wait(job_id)
        error = caught.value
        assert (error.code, error.param, error.fine_tune.id) == ("row_too_long", "training_file", job_id)
        assert client.fine_tunes.wait(job_id, raise_on_failure=False).status == "failed"

    def test_a_cancelled_job_is_returned(self, api: FakeApi, client: Tunesmith) -> None:
        assert client.fine_tunes.wait(plan(api, becoming(api, "cancelled"))).status == "cancelled"

    def test_it_gives_up(self, api: FakeApi, client: Tunesmith) -> None:
        job_id = api.add_job()
        with pytest.raises(WaitTimeoutError, match="still queued after 0 seconds") as caught:
            client.fine_tunes.wait(job_id, timeout=0)
        assert isinstance(caught.value, TimeoutError)

    def test_waiting_outlasts_a_restart(self, api: FakeApi, client: Tunesmith, pauses: Pauses) -> None:
        job_id = plan(api, becoming(api, "running"), becoming(api, "succeeded"))
        pauses.on_pause = lambda number: {1: api.stop, 20: api.start}.get(number, lambda: None)()
        assert client.fine_tunes.wait(job_id).status == "succeeded"

    def test_patience_ends(
        self, api: FakeApi, client: Tunesmith, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_patience, "OUTAGE_PATIENCE_S", 0.0)
        pauses.on_pause = lambda number: api.stop() if number == 1 else None
        with pytest.raises(APIConnectionError):
            client.fine_tunes.wait(plan(api, becoming(api, "running")))

    async def test_async_twin(self, api: FakeApi, async_client: AsyncTunesmith) -> None:
        job_id = plan(api, becoming(api, "running"), becoming(api, "succeeded"))
        assert (await async_client.fine_tunes.wait(job_id)).status == "succeeded"
