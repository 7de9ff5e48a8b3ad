"""Jobs from create to their end through a real server, real gRPC and real processes; only the training is made up."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.artifacts import BASE_ID, BASE_SHAPES, adapter_files, safetensors_bytes
from tests.support.fake_importer import write_fake_importer
from tests.support.fake_trainer import Controls, write_fake_python
from tests.support.live_server import LiveServer, wait_until
from tunesmith_server.fine_tunes.events import silent

LEASE_SECONDS = 2
ROWS = b'{"prompt": "Say a.", "completion": "a"}\n' * 10


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory) -> Controls:
    """What tells the runs when to go on."""
    made = Controls(tmp_path_factory.mktemp("cache"))
    made.write_adapter(adapter_files())
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, controls: Controls) -> Iterator[LiveServer]:
    """A running server whose trainer obeys `controls`."""
    tmp_path = tmp_path_factory.mktemp("server")
    catalogue = tmp_path / "base_models.yaml"
    catalogue.write_text(f"- id: {BASE_ID}\n  source: toy:base\n")
    importer = write_fake_importer(tmp_path, safetensors_bytes(BASE_SHAPES))
    environment = {
        "TUNESMITH_CACHE_DIR": str(controls.folder.parent),
        "TUNESMITH_BASE_MODELS": str(catalogue),
        "TUNESMITH_TRAINER_PYTHON": str(write_fake_python(tmp_path, importer)),
        "TUNESMITH_LEASE_TTL_SECONDS": str(LEASE_SECONDS),
        "TUNESMITH_LEADER_TTL_SECONDS": "2",
    }
    with LiveServer(tmp_path / "home", environment=environment) as running:
        # A job that comes before says that it waits.
        wait_until(lambda: f"base model {BASE_ID} is ready" in running.stderr, 60, "the base model was not imported")
        yield running


def test_a_job_goes_from_create_to_a_model_with_checkpoints_and_results(server: LiveServer, controls: Controls) -> None:
    job_id = create(server, suffix="toy", metadata={"k": "v"})
    job = server.wait_for_job(job_id, 60)

    assert job["status"] == "succeeded", job["error"]
    name = job["fine_tuned_model"]
    assert name.startswith(f"ft:{BASE_ID}:default:toy:")
    assert job["hyperparameters"] == {"n_epochs": 3, "batch_size": 5, "learning_rate_multiplier": 1.0}
    assert (job["trained_tokens"], job["error"], job["evaluation"]["rows"]) == (60, None, 2)
    content = server.request("GET", f"/files/{job['result_files'][0]}/content")
    assert content.content == b"step,train_loss\n1,2.0\n"
    assert messages(server, job_id) == [
        f"Created fine-tuning job: {job_id}",
        f"Validating training file: {job['training_file']}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Step 1/6: training loss=2.00",
        "Step 2/6: training loss=1.00",
        "Checkpoint created at step 2",
        "Step 3/6: training loss=0.67",
        "Step 4/6: training loss=0.50",
        "Checkpoint created at step 4",
        "Step 5/6: training loss=0.40",
        "Step 6/6: training loss=0.33",
        "Checkpoint created at step 6",
        f"New fine-tuned model created: {name}",
        "The job has successfully completed",
    ]
    checkpoints = server.request("GET", f"/fine_tuning/jobs/{job_id}/checkpoints").json()["data"]
    assert [each["fine_tuned_model_checkpoint"] for each in checkpoints] == [
        f"{name}:ckpt-step-{step}" for step in (6, 4, 2)
    ]
    models = [model["id"] for model in server.request("GET", "/models").json()["data"]]
    assert {name, *(f"{name}:ckpt-step-{step}" for step in (2, 4, 6))} <= set(models)
    assert len(controls.notes(job_id)) == 1
    runs = server.home / "runs"
    wait_until(lambda: list(runs.iterdir()) == [], 20, "the ended runs were not cleaned up")


def test_kill_9_of_the_server_does_not_touch_the_run(server: LiveServer, controls: Controls) -> None:
    controls.hold(3)
    job_id = create(server)
    wait_until(lambda: len(messages(server, job_id)) >= 7, 30, "the run did not get to its hold")

    server.kill()
    controls.release(3)
    server.start()
    job = server.wait_for_job(job_id, 60)

    assert job["status"] == "succeeded", job["error"]
    assert len(controls.notes(job_id)) == 1, "the same run went on"
    assert "Fine-tuning job started again" not in messages(server, job_id)


def test_kill_9_of_the_run_resumes_from_the_last_checkpoint(server: LiveServer, controls: Controls) -> None:
    controls.hold(4)
    job_id = create(server)
    wait_until(lambda: "Step 3/6: training loss=0.67" in messages(server, job_id), 30, "the run did not get to step 3")

    os.kill(int(controls.notes(job_id)[0].split()[2]), signal.SIGKILL)
    controls.release(4)
    job = server.wait_for_job(job_id, 60)

    assert job["status"] == "succeeded", job["error"]
    assert [note.split()[::4] for note in controls.notes(job_id)] == [["e2", "0"], ["e3", "2"]]
    seen = messages(server, job_id)
    steps = [message for message in seen if message.startswith("Step ")]
    assert len(steps) == len(set(steps)) == 6
    assert "Fine-tuning job started again" in seen


def test_a_run_without_memory_is_tried_again_and_the_next_one_is_told(server: LiveServer, controls: Controls) -> None:
    controls.run_out_of_memory(times=1)
    job_id = create(server)
    job = server.wait_for_job(job_id, 60)
    controls.run_out_of_memory(times=0)

    assert job["status"] == "succeeded", job["error"]
    assert [note.split()[0] for note in controls.notes(job_id)] == ["e2", "e3"]
    assert any("needs more memory than its machine has" in message for message in messages(server, job_id))


def test_a_paused_job_frees_its_device_and_resumes_from_its_last_checkpoint(
    server: LiveServer, controls: Controls
) -> None:
    controls.hold(4)
    job_id = create(server)
    wait_until(lambda: "Step 3/6: training loss=0.67" in messages(server, job_id), 30, "the run did not get to step 3")
    pausing = server.request("POST", f"/fine_tuning/jobs/{job_id}/pause").json()
    assert pausing["status"] == "pausing"
    wait_until(lambda: server.job(job_id)["status"] == "paused", 20, "the run did not pause")
    controls.release(4)
    assert server.wait_for_job(create(server), 60)["status"] == "succeeded", "the device was not free"

    server.request("POST", f"/fine_tuning/jobs/{job_id}/resume")
    job = server.wait_for_job(job_id, 60)

    assert job["status"] == "succeeded", job["error"]
    assert [note.split()[::4] for note in controls.notes(job_id)] == [["e2", "0"], ["e3", "2"]]
    seen = messages(server, job_id)
    steps = [message for message in seen if message.startswith("Step ")]
    assert len(steps) == len(set(steps)) == 6
    assert not any("Trying again" in message for message in seen)


def test_a_cancelled_run_ends(server: LiveServer, controls: Controls) -> None:
    controls.hold(2)
    job_id = create(server)
    wait_until(lambda: "Step 1/6: training loss=2.00" in messages(server, job_id), 30, "the run did not start")
    pid = int(controls.notes(job_id)[0].split()[2])

    answer = server.request("POST", f"/fine_tuning/jobs/{job_id}/cancel").json()

    assert answer["status"] == "cancelled"
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 20, "the run did not stop")
    wait_until(lambda: messages(server, job_id)[-1] == "The run of the cancelled job has ended", 20, "it is not said")
    assert server.job(job_id)["fine_tuned_model"] is None
    controls.release(2)


def test_a_file_that_preflight_refuses_fails_the_job_with_the_row(server: LiveServer) -> None:
    bad = ROWS + b'{"prompt": "Say b.", "completion": "refuse"}\n'
    job = server.wait_for_job(create(server, content=bad), 60)
    assert job["status"] == "failed"
    assert job["error"] == {"code": "row_refused", "message": "Row 11 is bad.", "param": "training_file"}
    events = server.request("GET", f"/fine_tuning/jobs/{job['id']}/events").json()["data"]
    assert events[0]["level"] == "error"
    assert events[0]["data"] == {"error_code": "row_refused", "error_param": "training_file", "error_row": 11}


def create(server: LiveServer, content: bytes = ROWS, **body: Any) -> str:
    """Uploads the rows and makes a job."""
    files = {"file": ("rows.jsonl", content)}
    file = server.request("POST", "/files", files=files, data={"purpose": "fine-tune"}).json()
    answer = server.request("POST", "/fine_tuning/jobs", json={"model": BASE_ID, "training_file": file["id"], **body})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def messages(server: LiveServer, job_id: str) -> list[str]:
    """The job's history, oldest first, without that a run was slow to be heard from: that depends on the machine."""
    page = server.request("GET", f"/fine_tuning/jobs/{job_id}/events", params={"limit": 100}).json()
    said = [event["message"] for event in reversed(page["data"])]
    return [message for message in said if message != silent(LEASE_SECONDS).message]
