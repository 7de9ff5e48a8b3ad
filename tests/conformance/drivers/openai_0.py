"""Drives 0.28.1, the last release before the rewrite: resources of the module, fine-tunes with their stream."""

from __future__ import annotations

import io
from typing import Any

import openai
from checks import BASE, MESSAGES, PROMPT_ROWS, ROWS, TERMINAL, Settings, call, raises, trainers_wait, until


def main() -> None:
    """Everything, in the order in which a user meets it."""
    openai.api_base = Settings["url"]
    openai.api_key = Settings["key"]
    files()
    job = fine_tuning_jobs()
    fine_tunes()
    inference(job.fine_tuned_model)
    models(job.fine_tuned_model)
    errors()


def upload(rows: bytes = ROWS) -> str:
    """A new training file."""
    made: str = openai.File.create(file=io.BytesIO(rows), purpose="fine-tune", user_provided_filename="rows.jsonl").id
    return made


def files() -> None:
    """The File class."""
    with call("File.create"):
        file_id = upload()
    with call("File.retrieve"):
        file = openai.File.retrieve(file_id)
        assert (file.object, file.filename, file.bytes, file.status) == ("file", "rows.jsonl", len(ROWS), "processed")
        assert file.response_ms is not None
        assert file.organization
    with call("File.list"):
        assert file_id in [each.id for each in openai.File.list().data]
    with call("File.download"):
        assert openai.File.download(file_id) == ROWS
    with call("File.find_matching_files"):
        found = openai.File.find_matching_files(name="rows.jsonl", bytes=len(ROWS), purpose="fine-tune")
        assert file_id in [each["id"] for each in found]
    with call("File.delete"):
        assert openai.File.delete(file_id).deleted


def fine_tuning_jobs() -> Any:
    """The FineTuningJob class; returns a job that has succeeded."""
    resource = openai.FineTuningJob
    file_id = upload()
    with call("FineTuningJob.create"):
        job = resource.create(model=BASE, training_file=file_id, suffix="old", hyperparameters={"n_epochs": 3})
        assert (job.object, job.status, job.error) == ("fine_tuning.job", "validating_files", None)
    with call("FineTuningJob.retrieve"):
        job = until(lambda: resource.retrieve(job.id), lambda shown: shown.status in TERMINAL)
        assert job.status == "succeeded", job
    with call("FineTuningJob.list"):
        assert job.id in [each.id for each in resource.list(limit=5).data]
        assert job.id in [each.id for each in resource.auto_paging_iter(limit=1)]
    with call("FineTuningJob.list_events"):
        page = resource.list_events(id=job.id, limit=3)
        assert page.data[0].message == "The job has successfully completed"
        assert page.has_more
        assert resource.list_events(id=job.id, limit=3, after=page.data[-1].id).data[0].id != page.data[0].id
    with call("FineTuningJob.cancel"), trainers_wait():
        other = resource.create(model=BASE, training_file=file_id)
        assert resource.cancel(other.id).status == "cancelled"
    return job


def fine_tunes() -> None:
    """The FineTune class, which is gone from later clients."""
    resource = openai.FineTune
    file_id = upload(PROMPT_ROWS)
    with call("FineTune.create"):
        tune = resource.create(
            training_file=file_id, model="davinci", n_epochs=3, suffix="older", prompt_loss_weight=0.01
        )
        assert (tune.object, tune.fine_tuned_model) == ("fine-tune", None)
        assert tune.status in ("created", "pending", "running")
        assert tune.training_files[0].id == file_id
        assert tune.events[0].object == "fine-tune-event"
    with call("FineTune.stream_events"):
        seen = list(resource.stream_events(tune.id))
        assert {event.object for event in seen} == {"fine-tune-event"}
        assert [event.message for event in seen] == [event.message for event in resource.list_events(tune.id).data]
    with call("FineTune.retrieve"):
        tune = resource.retrieve(tune.id)
        assert (tune.status, tune.hyperparams.n_epochs, tune.hyperparams.batch_size) == ("succeeded", 3, 5)
        assert tune.fine_tuned_model
        assert tune.result_files[0].purpose == "fine-tune-results"
    with call("FineTune.list"):
        assert tune.id in [each.id for each in resource.list().data]
    with call("FineTune.cancel"), trainers_wait():
        other = resource.create(training_file=file_id, model=BASE)
        assert resource.cancel(other.id).status == "cancelled"


def inference(model: str) -> None:
    """Chat and completions, whole and streamed."""
    with call("ChatCompletion.create"):
        answer = openai.ChatCompletion.create(model=model, messages=MESSAGES, max_tokens=4)
        assert (answer.object, answer.model, answer.usage.completion_tokens) == ("chat.completion", model, 4)
    with call("ChatCompletion.create(stream)"):
        chunks = list(openai.ChatCompletion.create(model=model, messages=MESSAGES, max_tokens=4, stream=True))
        assert "".join(chunk.choices[0].delta.get("content", "") for chunk in chunks)
    with call("Completion.create"):
        assert openai.Completion.create(model=BASE, prompt="Say a.", max_tokens=4).choices[0].text
    with call("Completion.create(stream)"):
        assert list(openai.Completion.create(model=BASE, prompt="Say a.", max_tokens=4, stream=True))


def models(model: str) -> None:
    """The Model class."""
    with call("Model.list"):
        assert {BASE, model} <= {each.id for each in openai.Model.list().data}
    with call("Model.retrieve"):
        assert openai.Model.retrieve(model).owned_by
    with call("Model.retrieve with a slash in the id"):
        error = raises(openai.error.InvalidRequestError, lambda: openai.Model.retrieve("org/model"), http_status=404)
        assert error.code == "model_not_found"
    with call("Model.delete"):
        assert openai.Model.delete(model).deleted


def errors() -> None:
    """The classes of openai.error."""
    with call("AuthenticationError"):
        raises(openai.error.AuthenticationError, lambda: openai.File.list(api_key="wrong"), http_status=401)
    with call("InvalidRequestError"):
        error = raises(
            openai.error.InvalidRequestError,
            lambda: openai.FineTuningJob.create(model=BASE, training_file="file-none"),
            http_status=400,
            param="training_file",
        )
        assert error.headers["x-request-id"]
        raises(openai.error.InvalidRequestError, lambda: openai.FineTuningJob.retrieve("ftjob-none"), http_status=404)


if __name__ == "__main__":
    main()
