"""A job on two devices, from its creation to the registered model: real server, real trainer, two ranks, no engine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tiny_model
from tests.support.live_server import LiveServer, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(400)]

ROWS, EPOCHS, STEPS_PER_PASS = 20, 6, 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A platform with a tiny base model and room for two runs, or for one on two devices."""
    folder = tmp_path_factory.mktemp("two-devices")
    source = tiny_model.build(folder / "tiny")
    (folder / "base_models.yaml").write_text(f"- id: tiny\n  source: {source}\n")
    settings = {
        "TUNESMITH_BASE_MODELS": str(folder / "base_models.yaml"),
        "TUNESMITH_CACHE_DIR": str(folder / "cache"),
        "TUNESMITH_MAX_CONCURRENT_RUNS": "2",
    }
    with LiveServer(folder / "home", environment=settings) as running:
        yield running


def create(server: LiveServer, devices: int, weights: str) -> str:
    """A job on so many devices, as anyone would ask for it."""
    rows = [{"prompt": f"Colour of item {number}?", "completion": f"shade {number % 7}"} for number in range(ROWS)]
    content = "\n".join(json.dumps(row) for row in rows).encode()
    files = {"file": ("rows.jsonl", content)}
    file = server.request("POST", "/files", data={"purpose": "fine-tune"}, files=files).json()
    body = {
        "model": "tiny",
        "training_file": file["id"],
        "seed": 3,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": EPOCHS, "batch_size": 6}}},
        "training": {"weights": weights},
        "scheduling": {"devices": devices},
    }
    answer = server.request("POST", "/fine_tuning/jobs", json=body)
    assert answer.status_code == 200, answer.text
    made: str = answer.json()["id"]
    return made


def ranks_of(server: LiveServer) -> dict[int, int]:
    """Process ids of the ranks that compute for this server, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile
            continue
        if "--rank" in arguments and any(one.startswith(str(server.home)) for one in arguments):
            found[int(arguments[arguments.index("--rank") + 1])] = int(path.parent.name)
    return found


def events(server: LiveServer, job_id: str) -> list[str]:
    """All that was told of a job."""
    page = server.request("GET", f"/fine_tuning/jobs/{job_id}/events", params={"limit": 100}).json()
    return [event["message"] for event in page["data"]]


def losses(server: LiveServer, job_id: str) -> list[float]:
    """The loss of every step, each of which was told once."""
    metrics = server.request("GET", f"/fine_tuning/jobs/{job_id}/metrics", params={"limit": 100}).json()["data"]
    steps = [each["step"] for each in metrics]
    assert steps == list(range(1, len(steps) + 1))
    return [each["train_loss"] for each in metrics]


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_two_ranks_go_on_from_their_checkpoint_when_one_of_them_is_killed(server: LiveServer, weights: str) -> None:
    job_id = create(server, 2, weights)
    wait_until(
        lambda: any("Checkpoint created" in message for message in events(server, job_id)),
        200,
        lambda: f"nothing was saved: {server.job(job_id)}",
    )
    ranks = ranks_of(server)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    job = server.wait_for_job(job_id, timeout_seconds=300)

    assert job["status"] == "succeeded", job["error"]
    assert job["scheduling"]["devices"] == 2
    assert any("Resuming after step" in message for message in events(server, job_id))
    learnt = losses(server, job_id)
    assert len(learnt) == EPOCHS * STEPS_PER_PASS
    assert learnt[-1] < learnt[0]
    wait_until(lambda: not ranks_of(server), 30, "the ranks did not end")
