"""Each error class has one row, and both wires say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

import grpc
import pytest
from google.rpc import error_details_pb2
from pydantic import BaseModel, ConfigDict, ValidationError

from tunesmith_server.error_rendering import RENDERINGS, from_validation, grpc_status, http_response
from tunesmith_server.errors import (
    ConflictError,
    FencedError,
    InternalError,
    InvalidRequestError,
    Problem,
    QuotaExceededError,
    StorageFullError,
    TunesmithError,
    UnauthenticatedError,
    UnavailableError,
)


def classes_below(root: type[TunesmithError]) -> Iterator[type[TunesmithError]]:
    for cls in root.__subclasses__():
        yield cls
        yield from classes_below(cls)


@pytest.mark.parametrize("cls", list(classes_below(TunesmithError)), ids=lambda cls: cls.__name__)
def test_every_error_class_has_a_row(cls: type[TunesmithError]) -> None:
    assert cls in RENDERINGS, f"{cls.__name__} needs its own HTTP status and gRPC code in error_rendering.py"


def test_the_envelope_always_has_four_keys() -> None:
    response = http_response(InternalError("internal_error", "It failed."))
    assert (response.status_code, json.loads(bytes(response.body))) == (
        500,
        {"error": {"message": "It failed.", "type": "server_error", "param": None, "code": "internal_error"}},
    )


def test_clients_do_not_repeat_a_conflict() -> None:
    for error in (ConflictError("file_in_use", "In use."), FencedError()):
        response = http_response(error)
        assert (response.status_code, response.headers["x-should-retry"]) == (409, "false")


def test_a_quota_is_repeated_only_where_waiting_helps() -> None:
    used_up = http_response(QuotaExceededError("quota_exceeded", "Too many."))
    assert (used_up.status_code, used_up.headers["x-should-retry"]) == (429, "false")
    too_fast = http_response(QuotaExceededError("rate_limit_exceeded", "Too fast.", retry_after=0.25))
    assert (too_fast.headers["retry-after"], too_fast.headers["retry-after-ms"]) == ("1", "250")
    assert "x-should-retry" not in too_fast.headers

    status = grpc_status(QuotaExceededError("rate_limit_exceeded", "Too fast.", retry_after=0.25))
    retry, failure = error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 250
    assert status.details[2].Unpack(failure)
    assert failure.violations[0].subject == "rate_limit_exceeded"


def test_headers_say_when_to_come_back_and_how_to_log_in() -> None:
    assert http_response(UnavailableError("x", "Later.", retry_after=7)).headers["retry-after"] == "7"
    assert http_response(UnauthenticatedError("x", "No.")).headers["www-authenticate"] == "Bearer"
    assert http_response(StorageFullError("storage_full", "Full.")).status_code == 507


def test_text_that_utf8_cannot_hold_does_not_break_the_answer() -> None:
    error = InvalidRequestError("x", "Bad \ud800.", param="\ud800")
    assert json.loads(bytes(http_response(error).body))["error"]["message"] == "Bad \ud800."
    assert grpc_status(error).message == "Bad ?."


def test_problems_reach_both_wires() -> None:
    problems = [Problem("invalid_json", "Line 7 is bad.", "file", 7), Problem("x", "Also.", None, 9)]
    error = InvalidRequestError("invalid_json", "Line 7 is bad.", param="file", problems=problems)
    body = json.loads(bytes(http_response(error).body))["error"]
    assert body["problems"][0] == {"code": "invalid_json", "message": "Line 7 is bad.", "param": "file", "line": 7}

    status = grpc_status(error)
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == ("invalid_json", "tunesmith", {"param": "file"})
    assert status.details[1].Unpack(request)
    assert [(v.field, v.description, v.reason) for v in request.field_violations] == [
        ("file", "Line 7 is bad.", "invalid_json"),
        ("line 9", "Also.", "x"),
    ]


def test_retry_info_tells_grpc_clients_when_to_come_back() -> None:
    status = grpc_status(UnavailableError("x", "Later.", retry_after=7))
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.seconds == 7


class Numbers(BaseModel):
    """Unions put the names of their branches into pydantic's paths; users must not see them."""

    model_config = ConfigDict(extra="forbid")
    n_epochs: Literal["auto"] | int = "auto"
    tags: list[str] = []


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str
    hyperparameters: Numbers | None = None


def error_of(body: object) -> InvalidRequestError:
    with pytest.raises(ValidationError) as raised:
        Body.model_validate(body)
    return from_validation(raised.value.errors(), body)


def test_what_is_no_object_is_told_so_in_words_of_json() -> None:
    error = error_of({"model": "m", "hyperparameters": 3})
    assert error.message == "`hyperparameters`: input should be a JSON object."


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": "m", "hyperparameters": {"n_epochs": "many"}}, "invalid_value", "hyperparameters.n_epochs"),
        ({"model": "m", "hyperparameters": {"n_epochs": None}}, "invalid_value", "hyperparameters.n_epochs"),
        ({"model": "m", "hyperparameters": {"tags": ["a", 1]}}, "invalid_type", "hyperparameters.tags.1"),
        ({"model": "m", "hyperparameters": {"epochs": 1}}, "unknown_parameter", "hyperparameters.epochs"),
        ({"model": "m", "hyperparameters": 3}, "invalid_type", "hyperparameters"),
        ({"model": 1}, "invalid_type", "model"),
        ({}, "missing_required_parameter", "model"),
        ([], "invalid_body", None),
    ],
)
def test_validation_names_the_field(body: object, code: str, param: str | None) -> None:
    error = error_of(body)
    assert (error.code, error.param) == (code, param)
    assert error.message.endswith(".")


def test_validation_tells_every_way_to_be_right() -> None:
    message = error_of({"model": "m", "hyperparameters": {"n_epochs": "many"}}).message
    assert message.startswith("`hyperparameters.n_epochs`: ")
    assert "'auto'" in message
    assert "integer" in message


def test_validation_does_not_echo_the_value() -> None:
    assert "secret" not in error_of({"model": ["secret"]}).message
