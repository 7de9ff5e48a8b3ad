"""Bad input against the running platform: each answer helps, and nothing is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.live_server import LiveServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODEL = "smollm2-135m-instruct"


def row(text: str = "What is the capital of India?") -> str:
    """One good chat row."""
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "New Delhi"}]
    return json.dumps({"messages": messages})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A platform without an engine."""
    with LiveServer(tmp_path_factory.mktemp("home"), inference=False) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    """An HTTP client with a valid key."""
    headers = {"Authorization": f"Bearer {server.api_key}"}
    with httpx.Client(base_url=f"{server.url}/v1", headers=headers, timeout=60) as ready:
        yield ready


@pytest.fixture
def good_file(client: httpx.Client) -> str:
    """The id of a file with twelve good rows."""
    answer = upload(client, "\n".join(row(f"Question {number}?") for number in range(12)))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def upload(client: httpx.Client, content: str, purpose: str = "fine-tune") -> httpx.Response:
    """Posts a file."""
    return client.post("/files", data={"purpose": purpose}, files={"file": ("rows.jsonl", content.encode())})


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, after the checks that every error must pass."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error), "strict clients need all four keys"
    assert error["code"], "a stable code"
    assert error["message"].endswith((".", "?")), f"a sentence: {error['message']}"
    assert answer.headers["x-request-id"]
    return error


def test_no_key_and_wrong_key(server: LiveServer) -> None:
    url = f"{server.url}/v1/fine_tuning/jobs"
    assert error_of(httpx.get(url), 401)["code"] == "missing_api_key"
    wrong = httpx.get(url, headers={"Authorization": "Bearer ts-wrong"})
    assert error_of(wrong, 401)["code"] == "invalid_api_key"
    assert "ts-wrong" not in wrong.text


def broken_line_7() -> str:
    """Twelve rows, the seventh cut off."""
    lines = [row(f"Question {number}?") for number in range(12)]
    lines[6] = lines[6][:-5]
    return "\n".join(lines)


BAD_FILES: dict[str, tuple[Callable[[], str], str]] = {
    "broken line 7": (broken_line_7, "line 7"),
    "empty": (lambda: "", ""),
    "no assistant message": (
        lambda: "\n".join([row()] * 11 + [json.dumps({"messages": [{"role": "user", "content": "Hi"}]})]),
        "line 12",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_and_not_stored(client: httpx.Client, server: LiveServer, name: str) -> None:
    make, where = BAD_FILES[name]
    before = stored_objects(server)
    error = error_of(upload(client, make()), 400)
    assert where in error["message"].lower()
    assert error["param"] == "file"
    assert stored_objects(server) == before, "nothing of a refused file may stay"


def stored_objects(server: LiveServer) -> set[Path]:
    """All uploaded objects on disk."""
    folder = server.home / "objects" / "files"
    return {path for path in folder.rglob("*") if path.is_file()}


def test_wrong_purpose(client: httpx.Client) -> None:
    assert error_of(upload(client, row(), purpose="dataset"), 400)["param"] == "purpose"
    image = upload(client, "no rows at all", purpose="vision").json()["id"]
    error = error_of(create(client, training_file=image), 400)
    assert (error["code"], error["param"]) == ("invalid_purpose", "training_file")


def test_nine_rows(client: httpx.Client) -> None:
    small = upload(client, "\n".join([row()] * 9)).json()["id"]
    error = error_of(create(client, training_file=small), 400)
    assert (error["code"], error["param"]) == ("invalid_n_examples", "training_file")


def create(client: httpx.Client, **body: Any) -> httpx.Response:
    """Posts a job for the bundled model unless the body names another."""
    return client.post("/fine_tuning/jobs", json={"model": MODEL, **body})


def test_unknown_model_and_file(client: httpx.Client, good_file: str) -> None:
    assert error_of(create(client, training_file=good_file, model="gpt-9"), 400)["code"] == "model_not_found"
    assert error_of(create(client, training_file="file-unknown"), 400)["param"] == "training_file"
    error = error_of(create(client, training_file=good_file, validation_file="file-unknown"), 400)
    assert error["param"] == "validation_file"
    assert error_of(client.get("/files/file-unknown"), 404)["code"]
    assert error_of(client.get("/fine_tuning/jobs/ftjob-unknown"), 404)["code"]


@pytest.mark.parametrize(
    ("hyperparameters", "name"),
    [
        ({"n_epochs": 0}, "n_epochs"),
        ({"n_epochs": 51}, "n_epochs"),
        ({"batch_size": 257}, "batch_size"),
        ({"learning_rate_multiplier": 0}, "learning_rate_multiplier"),
        ({"batch_size": "many"}, "batch_size"),
    ],
)
def test_hyperparameters_out_of_range(
    client: httpx.Client, good_file: str, hyperparameters: dict[str, Any], name: str
) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    assert name in error_of(create(client, training_file=good_file, method=method), 400)["param"]
    old_form = create(client, training_file=good_file, hyperparameters=hyperparameters)
    assert name in error_of(old_form, 400)["param"]


def test_a_rank_over_what_engines_load(client: httpx.Client, server: LiveServer, good_file: str) -> None:
    most = client.get("/fine_tuning/model_limits").json()["data"][0]["max_lora_rank"]
    jobs = client.get("/fine_tuning/jobs").json()["data"]
    error = error_of(create(client, training_file=good_file, training={"lora_rank": most + 1}), 400)
    assert (error["code"], error["param"]) == ("lora_rank_too_high", "training.lora_rank")
    assert f"at most {most}" in error["message"]
    assert client.get("/fine_tuning/jobs").json()["data"] == jobs


def test_malformed_json_and_oversized_body(client: httpx.Client) -> None:
    malformed = client.post("/fine_tuning/jobs", content=b'{"model": ', headers={"Content-Type": "application/json"})
    assert error_of(malformed, 400)["code"] == "invalid_json"
    oversized = client.post(
        "/fine_tuning/jobs",
        content=(b"x" * 1024 * 1024 for _ in range(64)),
        headers={"Content-Type": "application/json"},
    )
    assert error_of(oversized, 413)["code"] == "body_too_large"


def test_a_row_longer_than_the_context_fails_the_job_before_training(client: httpx.Client, server: LiveServer) -> None:
    rows = [row(f"Question {number}?") for number in range(12)]
    rows[4] = row("word " * 9000)
    long_file = upload(client, "\n".join(rows)).json()["id"]
    job_id = create(client, training_file=long_file).json()["id"]
    job = server.wait_for_job(job_id)
    assert job["status"] == "failed"
    assert job["error"]["code"] == "row_too_long"
    assert job["error"]["param"] == "training_file"
    assert "5" in job["error"]["message"], "the row is named"
    assert job["fine_tuned_model"] is None


def test_nothing_is_stuck(client: httpx.Client, server: LiveServer) -> None:
    # Last in the file: after all the refusals above, every job has ended and every stored file is listed.
    jobs = client.get("/fine_tuning/jobs", params={"limit": 100}).json()["data"]
    assert {job["status"] for job in jobs} <= {"failed", "succeeded", "cancelled"}
    listed = client.get("/files").json()["data"]
    uploaded = {file["id"] for file in listed if file["purpose"] != "fine-tune-results"}
    assert {path.name for path in stored_objects(server)} == uploaded
    rejects = [file for file in listed if file["purpose"] == "fine-tune-results"]
    assert len(rejects) == 1, "what the preflight refused can be read"
    assert client.get(f"/files/{rejects[0]['id']}/content").json()["line"] >= 1
