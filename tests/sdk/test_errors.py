"""One error class per status, and what an error tells."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest

import tunesmith
from tests.support.fake_answers import error_answer, json_answer
from tests.support.fake_api import FakeApi, Fault
from tests.support.loopback_http import Answer
from tunesmith import APIError, APIStatusError, NotFoundError, Problem, Tunesmith, TunesmithError, _errors
from tunesmith.types import FineTune, JobError, Model


class TestStatusError:
    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (400, tunesmith.BadRequestError),
            (401, tunesmith.AuthenticationError),
            (403, tunesmith.PermissionDeniedError),
            (404, tunesmith.NotFoundError),
            (409, tunesmith.ConflictError),
            (413, tunesmith.RequestTooLargeError),
            (422, tunesmith.UnprocessableEntityError),
            (429, tunesmith.RateLimitError),
            (500, tunesmith.InternalServerError),
            (503, tunesmith.InternalServerError),
            (418, tunesmith.APIStatusError),
        ],
    )
    def test_each_status_has_its_class(
        self, api: FakeApi, client: Tunesmith, status: int, expected: type[APIStatusError]
    ) -> None:
        refusal = error_answer(
            status, "Row 7 has no messages.", "invalid_file", "file", headers={"x-should-retry": "false"}
        )
        api.faults.append(Fault(refusal))
        with pytest.raises(APIStatusError) as caught:
            client.models.list()
        error = caught.value
        assert type(error) is expected
        assert str(error) == error.message == "Row 7 has no messages."
        assert (error.status_code, error.code, error.param) == (status, "invalid_file", "file")
        assert (error.type, error.request_id) == ("invalid_request_error", "req-1")

    @pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"", b"[]", b'{"error": "x"}', b"\xff"])
    def test_a_body_that_is_not_ours(self, api: FakeApi, client: Tunesmith, body: bytes) -> None:
        api.faults.append(Fault(Answer(404, body)))
        with pytest.raises(NotFoundError, match="status 404") as caught:
            client.models.list()
        assert (caught.value.code, caught.value.param) == (None, None)

    def test_all_problems_of_a_file(self, api: FakeApi, client: Tunesmith) -> None:
        first: dict[str, Any] = {
            "code": "invalid_json",
            "message": "Line 7 is not valid JSON.",
            "param": "file",
            "line": 7,
        }
        error = {"message": "Line 7 is not valid JSON.", "type": "x", "param": "file", "code": "invalid_json"}
        listed = [first, {"code": "empty_file"}, "nonsense"]
        api.faults.append(Fault(json_answer({"error": {**error, "problems": listed}}, 400)))
        with pytest.raises(APIStatusError) as caught:
            client.files.create(file=b"x")
        assert caught.value.problems == (Problem(**first), Problem("empty_file", ""))

    def test_a_wrong_key(self, api: FakeApi) -> None:
        with (
            Tunesmith(base_url=api.url, api_key="sk-wrong") as stranger,
            pytest.raises(tunesmith.AuthenticationError) as caught,
        ):
            stranger.models.list()
        assert caught.value.code == "invalid_api_key"


def test_the_docstring_draws_the_real_hierarchy() -> None:
    drawn: list[tuple[str, str]] = []
    ancestors: list[str] = []
    for line in (_errors.__doc__ or "").splitlines():
        if match := re.match(r"^    ([│├└─ ]*)(\w+Error)\b", line):
            depth = len(match[1]) // 4
            ancestors[depth:] = [match[2]]
            drawn.append((match[2], ancestors[depth - 1] if depth else "Exception"))
    real = [
        (name, thing.__bases__[0].__name__)
        for name, thing in vars(_errors).items()
        if isinstance(thing, type) and issubclass(thing, TunesmithError)
    ]
    assert sorted(drawn) == sorted(real)


def test_a_cancelled_job_has_not_failed() -> None:
    job = {"id": "ftjob-1", "created_at": 1, "model": "m", "status": "cancelled", "training_file": "file-1"}
    assert str(tunesmith.FineTuneFailedError(FineTune.model_validate(job))) == "Fine-tune ftjob-1 was cancelled."


def errors_of_every_class() -> list[TunesmithError]:
    """One of each class, with all that it tells."""
    told: dict[str, Any] = {"code": "c", "type": "t", "param": "p", "request_id": "req-1"}
    status = {**told, "status_code": 418, "problems": (Problem("c", "m", line=7),)}
    job = {"id": "ftjob-1", "created_at": 1, "model": "m", "status": "failed", "training_file": "file-1"}
    special: dict[type[TunesmithError], TunesmithError] = {
        tunesmith.FineTuneFailedError: tunesmith.FineTuneFailedError(FineTune.model_validate(job)),
        tunesmith.ModelFailedError: tunesmith.ModelFailedError(Model(id="m", error=JobError(code="c", message="Why."))),
    }
    classes = [kind for kind in vars(_errors).values() if isinstance(kind, type) and issubclass(kind, TunesmithError)]
    return [
        special[kind]
        if kind in special
        else kind(
            "Why.", **(status if issubclass(kind, APIStatusError) else told if issubclass(kind, APIError) else {})
        )
        for kind in classes
    ]


@pytest.mark.parametrize("error", errors_of_every_class(), ids=lambda error: type(error).__name__)
def test_errors_travel_between_processes(error: TunesmithError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))
