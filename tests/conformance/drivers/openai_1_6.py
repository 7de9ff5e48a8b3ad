"""Drives 1.6.1, which has both the old fine-tunes with their event stream and fine_tuning.jobs."""

from __future__ import annotations

import openai
from checks import BASE, MESSAGES, PROMPT_ROWS, ROWS, TERMINAL, Settings, call, raises, trainers_wait, until
from openai import OpenAI


def main() -> None:
    """Everything, in the order in which a user meets it."""
    client = OpenAI(base_url=Settings["url"], api_key=Settings["key"], timeout=60)
    file_id = files(client)
    model = jobs(client, file_id)
    fine_tunes(client)
    inference(client, model)
    models(client, model)
    errors(client, file_id)


def files(client: OpenAI) -> str:
    """Returns a training file that stays."""
    with call("files.create"):
        made = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
        other = client.files.create(file=("other.jsonl", ROWS), purpose="fine-tune")
        assert (made.object, made.bytes) == ("file", len(ROWS))
    with call("files.wait_for_processing"):
        assert client.files.wait_for_processing(made.id, poll_interval=0.1).status == "processed"
    with call("files.retrieve"):
        assert client.files.retrieve(made.id).filename == "rows.jsonl"
    with call("files.list"):
        assert {made.id, other.id} <= {file.id for file in client.files.list(purpose="fine-tune")}
    with call("files.content"):
        assert client.files.content(made.id).read() == ROWS
    with call("files.retrieve_content"):
        assert client.files.retrieve_content(made.id) == ROWS.decode()
    with call("files.delete"):
        assert client.files.delete(other.id).deleted
    return made.id


def jobs(client: OpenAI, file_id: str) -> str:
    """Returns the model of a job that has succeeded."""
    resource = client.fine_tuning.jobs
    with call("fine_tuning.jobs.create"):
        job = resource.create(
            model=BASE, training_file=file_id, suffix="one-six", hyperparameters={"n_epochs": 3, "batch_size": "auto"}
        )
        assert (job.object, job.status, job.error) == ("fine_tuning.job", "validating_files", None)
        second = resource.create(model=BASE, training_file=file_id)
    with call("fine_tuning.jobs.retrieve"):
        job = until(lambda: resource.retrieve(job.id), lambda shown: shown.status in TERMINAL)
        assert (job.status, job.trained_tokens) == ("succeeded", 60), job
        until(lambda: resource.retrieve(second.id), lambda shown: shown.status in TERMINAL)
    with call("fine_tuning.jobs.list, every page"):
        assert {job.id, second.id} <= {each.id for each in resource.list(limit=1)}
    with call("fine_tuning.jobs.list_events, every page"):
        events = list(resource.list_events(job.id, limit=4))
        assert events[0].message == "The job has successfully completed"
        assert len({event.id for event in events}) == len(events) > 8
    with call("fine_tuning.jobs.cancel"), trainers_wait():
        assert resource.cancel(resource.create(model=BASE, training_file=file_id).id).status == "cancelled"
    return job.fine_tuned_model


def fine_tunes(client: OpenAI) -> None:
    """The old resource."""
    resource = client.fine_tunes
    file_id = client.files.create(file=("old.jsonl", PROMPT_ROWS), purpose="fine-tune").id
    with call("fine_tunes.create"):
        tune = resource.create(training_file=file_id, model="davinci", hyperparameters={"n_epochs": 3}, suffix="old")
        assert (tune.object, tune.status, tune.training_files[0].id) == ("fine-tune", "created", file_id)
    with call("fine_tunes.list_events(stream)"):
        seen = list(resource.list_events(tune.id, stream=True))
        assert {event.object for event in seen} == {"fine-tune-event"}
    with call("fine_tunes.list_events"):
        listed = resource.list_events(tune.id)
        assert [event.message for event in listed.data] == [event.message for event in seen]
    with call("fine_tunes.retrieve"):
        tune = resource.retrieve(tune.id)
        assert (tune.status, tune.hyperparams.n_epochs, tune.hyperparams.batch_size) == ("succeeded", 3, 5)
        assert tune.fine_tuned_model
    with call("fine_tunes.list"):
        assert tune.id in [each.id for each in resource.list()]
    with call("fine_tunes.cancel"), trainers_wait():
        assert resource.cancel(resource.create(training_file=file_id, model=BASE).id).status == "cancelled"


def inference(client: OpenAI, model: str) -> None:
    """Chat and completions, whole and streamed."""
    with call("chat.completions.create"):
        answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4)
        assert (answer.object, answer.model, answer.usage.completion_tokens) == ("chat.completion", model, 4)
    with call("chat.completions.create(stream)"):
        chunks = list(client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    with call("completions.create"):
        assert client.completions.create(model=BASE, prompt="Say a.", max_tokens=4).choices[0].text
    with call("completions.create(stream)"):
        assert list(client.completions.create(model=BASE, prompt="Say a.", max_tokens=4, stream=True))


def models(client: OpenAI, model: str) -> None:
    """List, read, delete."""
    with call("models.list"):
        assert {BASE, model} <= {each.id for each in client.models.list()}
    with call("models.retrieve"):
        assert client.models.retrieve(model).owned_by
    with call("models.delete"):
        assert client.models.delete(model).deleted
        raises(openai.NotFoundError, lambda: client.models.retrieve(model), code="model_not_found")


def errors(client: OpenAI, file_id: str) -> None:
    """Every class of error, and what comes with an answer beside its body."""
    with call("with_raw_response"):
        raw = client.files.with_raw_response.list()
        assert raw.headers["x-request-id"]
        assert raw.parse().data
    with call("AuthenticationError"):
        raises(openai.AuthenticationError, lambda: client.with_options(api_key="wrong").files.list(), status_code=401)
    with call("BadRequestError"):
        raises(
            openai.BadRequestError,
            lambda: client.fine_tuning.jobs.create(model=BASE, training_file="file-none"),
            param="training_file",
        )
    with call("NotFoundError"):
        raises(openai.NotFoundError, lambda: client.fine_tuning.jobs.retrieve("ftjob-none"), status_code=404)
    with call("ConflictError, not repeated"), trainers_wait():
        job = client.fine_tuning.jobs.create(model=BASE, training_file=file_id)
        raises(openai.ConflictError, lambda: client.files.delete(file_id), code="file_in_use")
        client.fine_tuning.jobs.cancel(job.id)


if __name__ == "__main__":
    main()
