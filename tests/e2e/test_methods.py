"""The methods besides supervised tuning, from upload to the registered model: real server, real trainer, no engine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.live_server import LiveServer

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(600)]

BASE = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A platform without an engine."""
    with LiveServer(tmp_path_factory.mktemp("home"), inference=False) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    """The official client."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.api_key, timeout=60)


def done(server: LiveServer, job_id: str) -> dict[str, Any]:
    """The job once it has succeeded."""
    job = server.wait_for_job(job_id, timeout_seconds=400)
    assert job["status"] == "succeeded", job["error"]
    assert job["fine_tuned_model"]
    return job


def test_dpo_in_openais_format_teaches_what_is_preferred(server: LiveServer, client: openai.OpenAI) -> None:
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"What is {number} plus {number}?"}]},
            "preferred_output": [{"role": "assistant", "content": f"Aye, {2 * number}."}],
            "non_preferred_output": [{"role": "assistant", "content": f"It is {2 * number}."}],
        }
        for number in range(20)
    ]
    content = "\n".join(json.dumps(row) for row in rows).encode()
    file = client.files.create(file=("pairs.jsonl", content), purpose="fine-tune")
    numbers: Any = {"n_epochs": 2, "batch_size": 6, "beta": 0.2}
    made = client.fine_tuning.jobs.create(
        model=BASE, training_file=file.id, seed=1, method={"type": "dpo", "dpo": {"hyperparameters": numbers}}
    )
    job = done(server, made.id)

    assert job["method"]["dpo"]["hyperparameters"] == numbers | {"learning_rate_multiplier": 1.0}
    base, tuned = job["evaluation"]["base"], job["evaluation"]["tuned"]
    assert base["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert tuned["loss"] < base["loss"]
    assert tuned["preference_margin"] > base["preference_margin"]
    assert tuned["exact_match"] is None
    metrics = server.request("GET", f"/fine_tuning/jobs/{made.id}/metrics").json()["data"]
    assert [each["step"] for each in metrics] == [1, 2, 3, 4, 5, 6]
    # Where the machine multiplies bfloat16, a step's packs give slightly other numbers than those of the base.
    assert metrics[0]["train_loss"] == pytest.approx(math.log(2), abs=0.05)
    assert metrics[-1]["train_mean_token_accuracy"] == 1.0


def test_dpo_goes_on_from_a_supervised_adapter(server: LiveServer, client: openai.OpenAI) -> None:
    questions = [f"What is {number} plus {number}?" for number in range(12)]
    rows = [{"prompt": question, "completion": " It is known."} for question in questions]
    pairs = [
        {
            "input": {"messages": [{"role": "user", "content": question}]},
            "preferred_output": [{"role": "assistant", "content": "Aye."}],
            "non_preferred_output": [{"role": "assistant", "content": "It is known."}],
        }
        for question in questions
    ]
    files = [
        client.files.create(file=(name, "\n".join(json.dumps(row) for row in content).encode()), purpose="fine-tune")
        for name, content in (("rows.jsonl", rows), ("pairs.jsonl", pairs))
    ]
    training = {"lora_rank": 4, "lora_targets": ["attention"], "use_rslora": True}
    numbers: Any = {"n_epochs": 1, "batch_size": 6}
    first = client.fine_tuning.jobs.create(
        model=BASE, training_file=files[0].id, seed=1, hyperparameters=numbers, extra_body={"training": training}
    )
    start = done(server, first.id)["fine_tuned_model"]
    made = client.fine_tuning.jobs.create(
        model=start, training_file=files[1].id, seed=1, method={"type": "dpo", "dpo": {"hyperparameters": numbers}}
    )
    job = done(server, made.id)

    assert job["model"] == start
    assert job["fine_tuned_model"].startswith(f"ft:{BASE}:")
    assert {name: job["training"][name] for name in training} == training
    assert job["evaluation"]["base"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert job["evaluation"]["tuned"]["loss"] < job["evaluation"]["base"]["loss"]


def test_a_plain_text_lowers_the_perplexity_of_its_kind(server: LiveServer, client: openai.OpenAI) -> None:
    text = "".join(f"Ledger entry {number}: the keeper of lamp {number % 7} lit it at dusk.\n" for number in range(400))
    file = client.files.create(file=("ledger.txt", text.encode()), purpose="fine-tune")
    method: Any = {
        "type": "continued_pretraining",
        "continued_pretraining": {"hyperparameters": {"n_epochs": 1, "batch_size": 1}},
    }
    made = client.fine_tuning.jobs.create(model=BASE, training_file=file.id, seed=1, method=method)
    job = done(server, made.id)

    base, tuned = job["evaluation"]["base"], job["evaluation"]["tuned"]
    assert tuned["perplexity"] < base["perplexity"]
    assert tuned["perplexity"] == pytest.approx(math.exp(tuned["loss"]))
    assert (tuned["exact_match"], tuned["preference_accuracy"]) == (None, None)
    assert job["method"]["type"] == "continued_pretraining"


def test_a_job_on_a_file_of_another_method_fails_with_its_rows(server: LiveServer, client: openai.OpenAI) -> None:
    rows = "\n".join(json.dumps({"text": f"Line {number}."}) for number in range(12))
    file = client.files.create(file=("texts.jsonl", rows.encode()), purpose="fine-tune")
    made = client.fine_tuning.jobs.create(model=BASE, training_file=file.id, method={"type": "dpo"})
    job = server.wait_for_job(made.id)

    assert job["status"] == "failed"
    assert (job["error"]["code"], job["error"]["param"]) == ("wrong_row_type", "training_file")
    assert "Row 1 " in job["error"]["message"]
