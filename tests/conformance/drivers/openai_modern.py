"""Drives every resource that the clients since 1.109 know, as their users do."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import uuid
from pathlib import Path
from typing import Any

import openai
from checks import BASE, MESSAGES, ROWS, TERMINAL, Settings, call, raises, trainers_wait, until
from openai import OpenAI
from openai_organization import administration, permissions, webhooks


def main() -> None:
    """Everything, in the order in which a user meets it."""
    client = OpenAI(base_url=Settings["url"], api_key=Settings["key"], timeout=60)
    file_id = files(client)
    uploads(client)
    job_id = jobs(client, file_id)
    paused_jobs(client, file_id)
    model = models(client, job_id)
    inference(client, model)
    captures(client)
    permissions(client, job_id)
    graders(client)
    errors(client, file_id)
    webhooks(client, file_id)
    administration(client)
    with call("models.delete"):
        assert client.models.delete(model).deleted
        raises(openai.NotFoundError, lambda: client.models.retrieve(model), code="model_not_found")


def files(client: OpenAI) -> str:
    """Returns a training file that stays."""
    with call("files.create"):
        made = [client.files.create(file=(f"rows-{number}.jsonl", ROWS), purpose="fine-tune") for number in range(3)]
        assert {file.object for file in made} == {"file"}
        assert made[0].bytes == len(ROWS)
    with call("files.create(expires_after)"):
        expiring = client.files.create(
            file=("short.jsonl", ROWS), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert expiring.expires_at == expiring.created_at + 3600
    with call("files.create from a path"), tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(ROWS)
        file.flush()
        from_path = client.files.create(file=Path(file.name), purpose="fine-tune")
        assert from_path.filename == Path(file.name).name
    with call("files.create(purpose=user_data)"):
        assert client.files.create(file=("notes.txt", b"hello"), purpose="user_data").purpose == "user_data"
    with call("files.wait_for_processing"):
        assert client.files.wait_for_processing(made[0].id, poll_interval=0.1).status == "processed"
    with call("files.retrieve"):
        assert client.files.retrieve(made[0].id).filename == "rows-0.jsonl"
    with call("files.list, every page"):
        listed = [file.id for file in client.files.list(limit=1, purpose="fine-tune")]
        assert {file.id for file in made} <= set(listed)
        assert len(listed) == len(set(listed))
    with call("files.list(order=asc)"):
        times = [file.created_at for file in client.files.list(order="asc")]
        assert times == sorted(times)
    with call("files.content"):
        assert client.files.content(made[0].id).read() == ROWS
    with call("files.with_streaming_response.content"), client.files.with_streaming_response.content(made[0].id) as raw:
        assert b"".join(raw.iter_bytes()) == ROWS
    with call("files.delete"):
        assert client.files.delete(made[1].id).deleted
        raises(openai.NotFoundError, lambda: client.files.retrieve(made[1].id), status_code=404)
    return made[0].id


def uploads(client: OpenAI) -> None:
    """Resumable uploads, whole and step by step."""
    with call("uploads.upload_file_chunked"):
        done = client.uploads.upload_file_chunked(
            file=ROWS,
            filename="chunked.jsonl",
            bytes=len(ROWS),
            mime_type="text/jsonl",
            purpose="fine-tune",
            part_size=300,
            md5=hashlib.md5(ROWS).hexdigest(),
        )
        assert (done.status, done.object) == ("completed", "upload")
        assert done.file is not None
        assert client.files.content(done.file.id).read() == ROWS
    with call("uploads.create"):
        upload = client.uploads.create(
            bytes=len(ROWS), filename="parts.jsonl", mime_type="text/jsonl", purpose="fine-tune"
        )
        assert (upload.status, upload.file) == ("pending", None)
        assert upload.expires_at == upload.created_at + 3600
    with call("uploads.parts.create"):
        second = client.uploads.parts.create(upload.id, data=ROWS[400:])
        first = client.uploads.parts.create(upload.id, data=ROWS[:400])
        assert (first.object, first.upload_id) == ("upload.part", upload.id)
    with call("uploads.complete"):
        done = client.uploads.complete(upload.id, part_ids=[first.id, second.id])
        assert done.file is not None
        assert client.files.content(done.file.id).read() == ROWS
    with call("uploads.cancel"):
        other = client.uploads.create(bytes=5, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune")
        assert client.uploads.cancel(other.id).status == "cancelled"
        raises(openai.APIStatusError, lambda: client.uploads.parts.create(other.id, data=b"12345"))


def jobs(client: OpenAI, file_id: str) -> str:
    """Returns a job that has succeeded."""
    resource = client.fine_tuning.jobs
    with call("fine_tuning.jobs.create(method)"):
        job = resource.create(
            model=BASE,
            training_file=file_id,
            suffix="modern",
            seed=7,
            metadata={"team": "modern"},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}}},
        )
        assert (job.object, job.status, job.error, job.seed) == ("fine_tuning.job", "validating_files", None, 7)
        assert (job.metadata, job.result_files, job.fine_tuned_model) == ({"team": "modern"}, [], None)
        assert job.method is not None
        assert job.method.type == "supervised"
    with call("fine_tuning.jobs.create(hyperparameters)"):
        second = resource.create(model=BASE, training_file=file_id, hyperparameters={"n_epochs": 1})
        assert second.hyperparameters.n_epochs == 1
    with call("fine_tuning.jobs.create(method=reinforcement)"):
        # A method without a trainer is refused by name, never taken for another one.
        error = raises(
            openai.BadRequestError,
            lambda: resource.create(
                model=BASE,
                training_file=file_id,
                method={"type": "reinforcement", "reinforcement": {"grader": {"type": "multi"}}},
            ),
        )
        assert error.code
        assert error.param.startswith("method")
    with call("fine_tuning.jobs.retrieve"):
        job = until(lambda: resource.retrieve(job.id), lambda shown: shown.status in TERMINAL)
        assert (job.status, job.error) == ("succeeded", None), job
        assert job.fine_tuned_model is not None
        assert job.hyperparameters.batch_size == 5
        assert job.finished_at is not None
        assert job.trained_tokens == 60
        until(lambda: resource.retrieve(second.id), lambda shown: shown.status in TERMINAL)
    with call("fine_tuning.jobs.retrieve of a failed job"):
        bad = client.files.create(file=("bad.jsonl", ROWS.replace(b"Say a.", b"refuse", 1)), purpose="fine-tune")
        failed = resource.create(model=BASE, training_file=bad.id)
        failed = until(lambda: resource.retrieve(failed.id), lambda shown: shown.status in TERMINAL)
        assert failed.status == "failed"
        assert failed.error is not None
        assert (failed.error.code, failed.error.param) == ("row_refused", "training_file")
        assert "error" in [event.level for event in resource.list_events(failed.id)]
    with call("fine_tuning.jobs.list, every page"):
        listed = [each.id for each in resource.list(limit=1)]
        assert {job.id, second.id} <= set(listed)
        assert len(listed) == len(set(listed))
    with call("fine_tuning.jobs.list(metadata)"):
        assert job.id in [each.id for each in resource.list(metadata={"team": "modern"})]
        assert not list(resource.list(metadata={"team": "nobody"}))
    with call("fine_tuning.jobs.list_events, every page"):
        events = list(resource.list_events(job.id, limit=4))
        assert events[0].message == "The job has successfully completed"
        assert {event.type for event in events} == {"message", "metrics"}
        assert len({event.id for event in events}) == len(events) > 8
    with call("fine_tuning.jobs.checkpoints.list, every page"):
        checkpoints = list(resource.checkpoints.list(job.id, limit=1))
        assert [each.step_number for each in checkpoints] == [6, 4, 2]
        assert checkpoints[0].metrics.train_loss is not None
    with call("files.content of a result file"):
        assert client.files.content(job.result_files[0]).read().startswith(b"step,")
    with call("fine_tuning.jobs.cancel"), trainers_wait():
        cancelled = resource.cancel(resource.create(model=BASE, training_file=file_id).id)
        assert cancelled.status == "cancelled"
        raises(openai.BadRequestError, lambda: resource.cancel(cancelled.id))
    return job.id


def paused_jobs(client: OpenAI, file_id: str) -> None:
    """Pause in mid-run and go on."""
    resource = client.fine_tuning.jobs
    with call("fine_tuning.jobs.pause"), trainers_wait():
        job = resource.create(model=BASE, training_file=file_id, suffix="paused")
        until(
            lambda: [event.message for event in resource.list_events(job.id, limit=50)],
            lambda messages: any(message.startswith("Step 2/") for message in messages),
        )
        assert resource.pause(job.id).status in ("pausing", "paused")
        until(lambda: resource.retrieve(job.id).status, lambda status: str(status) == "paused")
        assert str(resource.pause(job.id).status) == "paused"
    with call("fine_tuning.jobs.resume"):
        assert resource.resume(job.id).status in ("queued", "running")
        ended = until(lambda: resource.retrieve(job.id), lambda shown: shown.status in TERMINAL)
        assert ended.status == "succeeded", ended


def models(client: OpenAI, job_id: str) -> str:
    """Returns the name of a tuned model."""
    name = client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model
    assert name is not None
    with call("models.list"):
        listed = {model.id: model for model in client.models.list()}
        assert {BASE, name, f"{name}:ckpt-step-2"} <= set(listed)
        assert listed[name].object == "model"
    with call("models.retrieve"):
        assert client.models.retrieve(name).owned_by
    with call("models.retrieve with a slash in the id"):
        raises(openai.NotFoundError, lambda: client.models.retrieve("org/model"), code="model_not_found")
    return name


def inference(client: OpenAI, model: str) -> None:
    """Chat and completions of base, tuned model and checkpoint, whole and streamed."""
    with call("chat.completions.create"):
        for name in (BASE, model, f"{model}:ckpt-step-2"):
            answer = client.chat.completions.create(model=name, messages=MESSAGES, max_completion_tokens=4)
            assert (answer.object, answer.model) == ("chat.completion", name)
            assert answer.choices[0].message.content
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 4
    with call("chat.completions.create(stream)"):
        chunks = list(
            client.chat.completions.create(
                model=model, messages=MESSAGES, max_tokens=4, stream=True, stream_options={"include_usage": True}
            )
        )
        assert {(chunk.object, chunk.model) for chunk in chunks} == {("chat.completion.chunk", model)}
        assert chunks[-1].usage is not None
    with (
        call("chat.completions.stream"),
        client.chat.completions.stream(model=model, messages=MESSAGES, max_tokens=4) as stream,
    ):
        assert [event.type for event in stream][-1] == "content.done"
    with call("completions.create"):
        text = client.completions.create(model=model, prompt="Say a.", max_tokens=4)
        assert (text.object, bool(text.choices[0].text)) == ("text_completion", True)
    with call("completions.create(stream)"):
        assert len(list(client.completions.create(model=BASE, prompt="Say a.", max_tokens=4, stream=True))) >= 4
    if hasattr(client, "responses"):
        with call("responses.create"):
            response = client.responses.create(model=model, input="Say a.", max_output_tokens=4)
            assert (response.object, response.model, response.status) == ("response", model, "incomplete")
            assert response.output_text
        with call("responses.create(stream)"):
            events = list(client.responses.create(model=model, input="Say a.", max_output_tokens=4, stream=True))
            assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
    with call("chat.completions of an unknown model"):
        raises(
            openai.NotFoundError,
            lambda: client.chat.completions.create(model="org/model", messages=MESSAGES),
            code="model_not_found",
        )


def captures(client: OpenAI) -> None:
    """What the key asks is kept, and can be read, changed, deleted and trained on."""
    stored = client.chat.completions
    made = f"{openai.__version__}-{uuid.uuid4().hex[:8]}"
    asked: Any = [{"role": "system", "content": "Count."}, {"role": "user", "content": [{"type": "text", "text": "1"}]}]
    with call("chat.completions.create(store, metadata)"):
        for number in range(10):
            asked[1]["content"][0]["text"] = f"{made} {number}"
            # The engine's answers are numbers with spaces between: one that ends at a space is whole, not cut.
            stored.create(model=BASE, messages=asked, stop=" ", store=True, metadata={"by": made})
        stored.create(model=BASE, messages=asked, store=False, metadata={"by": made})
    with call("chat.completions.list(metadata), every page"):
        listed = until(lambda: list(stored.list(metadata={"by": made}, limit=3)), lambda found: len(found) == 10)
        assert [each.id for each in listed] == [each.id for each in stored.list(metadata={"by": made}, model=BASE)]
        assert not list(stored.list(metadata={"by": "nobody"}))
    with call("chat.completions.retrieve"):
        found = stored.retrieve(listed[0].id)
        assert (found.choices[0].finish_reason, bool(found.choices[0].message.content)) == ("stop", True)
    with call("chat.completions.messages.list, every page"):
        messages = list(stored.messages.list(listed[0].id, limit=1))
        assert [message.content for message in messages] == ["Count.", None]
    with call("chat.completions.update"):
        stored.update(listed[0].id, metadata={"by": "somebody else"})
        assert len(list(stored.list(metadata={"by": made}))) == 9
        stored.update(listed[0].id, metadata={"by": made})
    with call("POST /capture_datasets, fine_tuning.jobs.create of it"):
        made_of: Any = client.post("/capture_datasets", body={"metadata": {"by": made}}, cast_to=object)
        assert (made_of["object"], made_of["rows"]) == ("file", 10)
        job = client.fine_tuning.jobs.create(model=BASE, training_file=made_of["id"])
        ended = until(
            lambda: client.fine_tuning.jobs.retrieve(job.id), lambda job: job.status in ("succeeded", "failed")
        )
        assert ended.status == "succeeded", ended
    with call("chat.completions.delete"):
        assert stored.delete(listed[0].id).deleted
        raises(openai.NotFoundError, lambda: stored.retrieve(listed[0].id), code="chat_completion_not_found")


def graders(client: OpenAI) -> None:
    """The types that need no sandbox."""
    resource = client.fine_tuning.alpha.graders
    same: Any = {
        "type": "string_check",
        "name": "same",
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
        "operation": "eq",
    }
    close: Any = {
        "type": "text_similarity",
        "name": "close",
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
        "evaluation_metric": "fuzzy_match",
    }
    with call("fine_tuning.alpha.graders.validate"):
        assert resource.validate(grader=same).grader is not None
    with call("fine_tuning.alpha.graders.run(string_check)"):
        graded = resource.run(grader=same, model_sample="a", item={"answer": "a"})
        assert graded.reward == 1
        assert not graded.metadata.errors.other_error
        assert resource.run(grader=same, model_sample="b", item={"answer": "a"}).reward == 0
    with call("fine_tuning.alpha.graders.run(text_similarity)"):
        assert resource.run(grader=close, model_sample="abc", item={"answer": "abc"}).reward == 1
    with call("fine_tuning.alpha.graders.run(multi)"):
        both: Any = {
            "type": "multi",
            "name": "both",
            "graders": {"same": same, "close": close},
            "calculate_output": "0.5 * same + 0.5 * close",
        }
        graded = resource.run(grader=both, model_sample="abc", item={"answer": "abc"})
        assert graded.reward == 1
        assert set(graded.sub_rewards) == {"same", "close"}
    with call("fine_tuning.alpha.graders.run(score_model)"):
        judge: Any = {
            "type": "score_model",
            "name": "judge",
            "model": BASE,
            "input": [{"role": "user", "content": "{{sample.output_text}}"}],
            "range": [0, 1],
        }
        graded = resource.run(grader=judge, model_sample="abc", item={})
        # The simulated judge gives the number 0 where a number is asked for.
        assert (graded.reward, graded.metadata.errors.to_dict()["model_grader_parse_error"]) == (0, False), graded
        assert graded.metadata.sampled_model_name == BASE
    with call("fine_tuning.alpha.graders.validate refuses"):
        raises(openai.BadRequestError, lambda: resource.validate(grader={**same, "operation": "near"}))


def errors(client: OpenAI, file_id: str) -> None:
    """Every class of error, and what comes with an answer beside its body."""
    resource = client.fine_tuning.jobs
    with call("with_raw_response"):
        raw = client.models.with_raw_response.list()
        assert raw.headers["x-request-id"]
        assert int(raw.headers["openai-processing-ms"]) >= 0
        assert raw.headers["openai-version"] == "2020-10-01"
        assert client.models.retrieve(BASE)._request_id
    with call("with_streaming_response"), resource.with_streaming_response.list(limit=1) as streamed:
        assert streamed.parse().data
    with call("AsyncOpenAI"):
        asyncio.run(by_async_client())
    with call("AuthenticationError"):
        wrong = client.with_options(api_key="wrong")
        raises(openai.AuthenticationError, lambda: wrong.files.list(), status_code=401)
    with call("BadRequestError"):
        error = raises(
            openai.BadRequestError,
            lambda: resource.create(model=BASE, training_file="file-none"),
            param="training_file",
            type="invalid_request_error",
        )
        assert error.code
        assert error.request_id
    with call("BadRequestError for an unknown cursor"):
        raises(openai.BadRequestError, lambda: resource.list(after="ftjob-none"), param="after")
    with call("BadRequestError for a bad file"):
        bad = ("bad.jsonl", b'{"messages": []}\nno json\n')
        raises(openai.BadRequestError, lambda: client.files.create(file=bad, purpose="fine-tune"), param="file")
    with call("NotFoundError"):
        raises(openai.NotFoundError, lambda: resource.retrieve("ftjob-none"), status_code=404)
    with call("ConflictError, not repeated"), trainers_wait():
        job = resource.create(model=BASE, training_file=file_id)
        raises(openai.ConflictError, lambda: client.files.delete(file_id), code="file_in_use")
        resource.cancel(job.id)


async def by_async_client() -> None:
    """The asynchronous client shares everything but its transport."""
    async with openai.AsyncOpenAI(base_url=Settings["url"], api_key=Settings["key"], timeout=60) as client:
        made = await client.files.create(file=("async.jsonl", ROWS), purpose="fine-tune")
        assert made.id in [file.id async for file in client.files.list(limit=5)]
        stream = await client.chat.completions.create(model=BASE, messages=MESSAGES, max_tokens=4, stream=True)
        assert [chunk async for chunk in stream]


if __name__ == "__main__":
    main()
