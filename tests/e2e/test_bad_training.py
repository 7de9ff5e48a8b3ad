"""Bad input and bad luck of training on real parts, with bases tiny enough for it: each has a code, nothing is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.support import tiny_families, tiny_model
from tests.support.live_server import LiveServer, wait_until
from tunesmith_trainer.data import indices_of_step

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(300)]

FLAW = "\u0001"
"""A character whose token the base `flawed` has no number for."""
ROWS, BATCH, SEED = 48, 4, 1
RUN_ROOM_MEGABYTES = 16


@dataclass(slots=True)
class Platform:
    """A running platform, and the folder that its runs work in: a small disk of its own."""

    server: LiveServer
    runs: Path
    jobs: list[str] = field(default_factory=list)

    def create(self, model: str, rows: list[dict[str, Any]], **body: Any) -> str:
        """Uploads the rows and makes a job."""
        content = "\n".join(json.dumps(row) for row in rows).encode()
        files = {"file": ("rows.jsonl", content)}
        file = self.server.request("POST", "/files", files=files, data={"purpose": "fine-tune"}).json()["id"]
        wanted = {"model": model, "training_file": file, "seed": SEED, **body}
        answer = self.server.request("POST", "/fine_tuning/jobs", json=wanted)
        assert answer.status_code == 200, answer.text
        self.jobs.append(str(answer.json()["id"]))
        return self.jobs[-1]

    def failed(self, job_id: str) -> dict[str, Any]:
        """The error of a job that has failed: a code, a sentence, and the parameter at fault."""
        job = self.server.wait_for_job(job_id, 120)
        assert (job["status"], job["fine_tuned_model"]) == ("failed", None)
        error: dict[str, Any] = job["error"]
        assert error["message"].endswith((".", "…"))
        return error

    def messages(self, job_id: str) -> list[str]:
        """The job's history, oldest first."""
        events = self.server.request("GET", f"/fine_tuning/jobs/{job_id}/events", params={"limit": 100}).json()["data"]
        return [event["message"] for event in reversed(events)]

    def steps(self, job_id: str) -> list[int]:
        """The steps whose numbers are known."""
        return [
            each["step"] for each in self.server.request("GET", f"/fine_tuning/jobs/{job_id}/metrics").json()["data"]
        ]

    def wait_for(self, job_id: str, line: str) -> None:
        """Returns once a line of the job's history holds this."""
        wait_until(lambda: any(line in message for message in self.messages(job_id)), 120, lambda: self._seen(job_id))

    def saved_and_paused(self, job_id: str) -> dict[str, Any]:
        """Pauses the job before its run has begun to train. Returns the checkpoint that it saves for that."""
        wait_until(lambda: self.server.job(job_id)["status"] == "running", 120, lambda: self._seen(job_id))
        assert self.steer(job_id, "pause") == 200
        wait_until(lambda: self.server.job(job_id)["status"] == "paused", 120, lambda: self._seen(job_id))
        return self.checkpoints(job_id)[0]

    def steer(self, job_id: str, action: str) -> int:
        """Pauses or resumes. Returns the status."""
        return self.server.request("POST", f"/fine_tuning/jobs/{job_id}/{action}").status_code

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """The job's checkpoints, newest first."""
        shown: list[dict[str, Any]] = self.server.request("GET", f"/fine_tuning/jobs/{job_id}/checkpoints").json()[
            "data"
        ]
        return shown

    def _seen(self, job_id: str) -> str:
        return f"{self.server.job(job_id)['status']}: {self.messages(job_id)}"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform without an engine whose catalogue has a good base and three bad ones."""
    folder = tmp_path_factory.mktemp("bad-training")
    tiny_model.build(folder / "tiny")
    tiny_families.build("gpt2", folder / "plain")
    build_mixture(folder / "mixture")
    build_flawed(folder / "flawed")
    names = ("tiny", "plain", "mixture", "flawed")
    catalogue = folder / "base_models.yaml"
    catalogue.write_text("".join(f"- {{id: {name}, source: '{folder / name}'}}\n" for name in names))
    runs = folder / "home" / "runs"
    runs.mkdir(parents=True)
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={RUN_ROOM_MEGABYTES}m", "tmpfs", str(runs)]
    mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    assert mounted.returncode == 0, f"only root may mount a disk: {mounted.stderr.strip()}"
    environment = {
        "TUNESMITH_BASE_MODELS": str(catalogue),
        "TUNESMITH_CACHE_DIR": str(folder / "cache"),
        "TUNESMITH_HEARTBEAT_INTERVAL_SECONDS": "1",
    }
    try:
        with LiveServer(folder / "home", environment=environment) as server:
            yield Platform(server, runs)
    finally:
        subprocess.run(["umount", "--lazy", str(runs)], check=True)


def build_mixture(folder: Path) -> None:
    """Writes a base that says of itself that it is a mixture of experts."""
    tiny_model.build(folder)
    path = folder / "config.json"
    mixture = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8}
    path.write_text(json.dumps(json.loads(path.read_text()) | mixture))


def build_flawed(folder: Path) -> None:
    """Writes a base that answers well until it reads one character: as vocabularies are where nobody trained them."""
    path = tiny_families.build("phi3", folder) / "model.safetensors"
    tensors = load_file(path)
    [token] = tiny_model.tokenizer()(FLAW, add_special_tokens=False)["input_ids"]
    tensors["model.embed_tokens.weight"][token] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def pairs(count: int = ROWS) -> list[dict[str, Any]]:
    """Good rows that need no chat template."""
    return [{"prompt": f"Question {number}?", "completion": f"answer {number}"} for number in range(count)]


def test_an_architecture_that_is_not_supported(platform: Platform) -> None:
    error = platform.failed(platform.create("mixture", pairs()))
    assert (error["code"], error["param"]) == ("unsupported_architecture", "model")
    assert "it is a mixture of experts; only dense models are trained" in error["message"]
    listing = [str(Path(sys.executable).with_name("tunesmithd")), "models", "list", "--home", str(platform.server.home)]
    told = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    assert "it is a mixture of experts; only dense models are trained" in told


def test_chat_rows_for_a_base_without_a_chat_template(platform: Platform) -> None:
    messages = [{"role": role, "content": "Hm."} for role in ("system", "user", "assistant")]
    error = platform.failed(platform.create("plain", [{"messages": messages}] * 12))
    assert (error["code"], error["param"]) == ("no_chat_template", "training_file")
    assert "Row 1 " in error["message"]


def test_rows_of_which_nothing_is_left_once_they_are_cut(platform: Platform) -> None:
    rows = [{"prompt": f"{number} " + "long " * 200, "completion": "x"} for number in range(12)]
    job_id = platform.create("tiny", rows, training={"long_rows": "cut"})
    error = platform.failed(job_id)
    assert (error["code"], error["param"]) == ("invalid_n_examples", "training_file")
    assert "12 of them are left out, being too long" in error["message"]
    rejects = platform.server.job(job_id)["preflight"]["rejects_file"]
    lines = platform.server.request("GET", f"/files/{rejects}/content").text.splitlines()
    assert [json.loads(line)["line"] for line in lines] == list(range(1, 13))


def test_a_loss_that_is_no_number_ends_the_job_and_leaves_what_was_good(platform: Platform) -> None:
    rows, last = pairs(), ROWS // BATCH
    at_fault = sorted(index + 1 for index in indices_of_step(ROWS, BATCH, SEED, last))
    rows[at_fault[0] - 1]["completion"] += FLAW
    validation = platform.server.request(
        "POST",
        "/files",
        files={"file": ("validation.jsonl", json.dumps(pairs(ROWS + 1)[-1]).encode())},
        data={"purpose": "fine-tune"},
    ).json()["id"]
    numbers = {"n_epochs": 1, "batch_size": BATCH}
    job_id = platform.create("flawed", rows, validation_file=validation, hyperparameters=numbers)
    good = platform.saved_and_paused(job_id)
    assert platform.steer(job_id, "resume") == 200

    error = platform.failed(job_id)

    assert (error["code"], error["param"]) == ("loss_not_finite", "training_file")
    assert f"step {last} " in error["message"]
    assert f"its rows are {', '.join(map(str, at_fault))}." in error["message"]
    assert platform.checkpoints(job_id) == [good], "the last good one is kept, and none of what came of it"
    assert platform.steps(job_id) == list(range(1, last)), "every number up to there is told"
    # What is left is worth something: it goes on with the rows that are in order.
    sound = [row for row in rows if FLAW not in row["completion"]]
    again = platform.create(good["fine_tuned_model_checkpoint"], sound, hyperparameters=numbers)
    assert platform.server.wait_for_job(again, 120)["status"] == "succeeded", platform.messages(again)


@pytest.mark.parametrize("file", ["training_state.safetensors", "adapter_model.safetensors"])
def test_a_job_goes_on_from_the_checkpoint_before_one_that_is_damaged(platform: Platform, file: str) -> None:
    numbers = {"n_epochs": 1, "batch_size": BATCH}
    job_id = platform.create("tiny", pairs(), hyperparameters=numbers)
    older = platform.saved_and_paused(job_id)
    assert platform.steer(job_id, "resume") == 200
    newer = platform.saved_and_paused(job_id)
    objects = platform.server.home / "objects" / "runs" / job_id
    [stored] = objects.rglob(f"step-{newer['step_number']}/{file}")
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # and what is one file with it: the model of that step
    assert platform.steer(job_id, "resume") == 200

    job = platform.server.wait_for_job(job_id, 120)

    assert job["status"] == "succeeded", job["error"]
    at_fault, sound = newer["step_number"], older["step_number"]
    onward = f"The checkpoint of step {at_fault} is damaged: the job goes on from the checkpoint of step {sound}."
    assert onward in platform.messages(job_id)
    assert {newer["id"], older["id"]} < {each["id"] for each in platform.checkpoints(job_id)}
    steps = platform.steps(job_id)
    assert steps == list(range(1, len(steps) + 1))


def test_a_disk_that_is_full_at_a_checkpoint(platform: Platform) -> None:
    job_id = platform.create("tiny", pairs(), auto_start=False, hyperparameters={"n_epochs": 2, "batch_size": BATCH})
    wait_until(lambda: platform.server.job(job_id)["status"] == "paused", 120, "the job was not validated")
    filler = platform.runs / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(platform.runs).free - 128 * 1024))  # room for rows, not for weights
    assert platform.steer(job_id, "resume") == 200
    platform.wait_for(job_id, "The disk that the run works on is full. Have its operator free some space")

    filler.unlink()
    job = platform.server.wait_for_job(job_id, 120)

    assert job["status"] == "succeeded", job["error"]
    steps = platform.steps(job_id)
    assert steps == list(range(1, len(steps) + 1))
    assert len(platform.checkpoints(job_id)) == 2


def test_nothing_is_stuck(platform: Platform) -> None:
    # Last in the file: whatever came of the jobs above, all have ended and no run is left.
    statuses = {platform.server.job(job_id)["status"] for job_id in platform.jobs}
    assert statuses == {"failed", "succeeded"}
    wait_until(
        lambda: not [left for run in platform.runs.iterdir() for left in (run / "work").glob("run-*")],
        60,
        "a run left its work behind",
    )
