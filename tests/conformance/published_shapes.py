"""Owns whether an answer has the shape that OpenAI publishes for its route: required keys, types, allowed words.

It must not know how answers were recorded. The facts are in required_keys.json, which names where they come from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conformance.wire import Exchange

_OBJECTS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("required_keys.json").read_text())["objects"]

_ID = r"[^/]+"
_JOB = rf"/fine_tuning/jobs/{_ID}"
_PERMISSIONS = rf"/fine_tuning/checkpoints/{_ID}/permissions"
_PROJECT = rf"/organization/projects/{_ID}"

ROUTES: dict[tuple[str, str], str] = {
    ("POST", "/files"): "OpenAIFile",
    ("GET", "/files"): "ListFilesResponse",
    ("GET", rf"/files/{_ID}"): "OpenAIFile",
    ("DELETE", rf"/files/{_ID}"): "DeleteFileResponse",
    ("POST", "/uploads"): "Upload",
    ("POST", rf"/uploads/{_ID}/parts"): "UploadPart",
    ("POST", rf"/uploads/{_ID}/complete"): "Upload",
    ("POST", rf"/uploads/{_ID}/cancel"): "Upload",
    ("POST", "/fine_tuning/jobs"): "FineTuningJob",
    ("GET", "/fine_tuning/jobs"): "ListPaginatedFineTuningJobsResponse",
    ("GET", _JOB): "FineTuningJob",
    ("POST", rf"{_JOB}/(cancel|pause|resume)"): "FineTuningJob",
    ("GET", rf"{_JOB}/events"): "ListFineTuningJobEventsResponse",
    ("GET", rf"{_JOB}/checkpoints"): "ListFineTuningJobCheckpointsResponse",
    ("POST", _PERMISSIONS): "ListFineTuningCheckpointPermissionResponse",
    ("GET", _PERMISSIONS): "ListFineTuningCheckpointPermissionResponse",
    ("DELETE", rf"{_PERMISSIONS}/{_ID}"): "DeleteFineTuningCheckpointPermissionResponse",
    ("POST", "/fine_tuning/alpha/graders/run"): "RunGraderResponse",
    ("POST", "/fine_tuning/alpha/graders/validate"): "ValidateGraderResponse",
    ("GET", "/models"): "ListModelsResponse",
    ("GET", rf"/models/{_ID}"): "Model",
    ("DELETE", rf"/models/{_ID}"): "DeleteModelResponse",
    ("POST", "/chat/completions"): "CreateChatCompletionResponse",
    ("GET", "/chat/completions"): "ChatCompletionList",
    ("GET", rf"/chat/completions/{_ID}"): "CreateChatCompletionResponse",
    ("POST", rf"/chat/completions/{_ID}"): "CreateChatCompletionResponse",
    ("DELETE", rf"/chat/completions/{_ID}"): "ChatCompletionDeleted",
    ("GET", rf"/chat/completions/{_ID}/messages"): "ChatCompletionMessageList",
    ("POST", "/completions"): "CreateCompletionResponse",
    ("GET", "/organization/projects"): "ProjectListResponse",
    ("POST", "/organization/projects"): "Project",
    ("GET", _PROJECT): "Project",
    ("POST", rf"{_PROJECT}(/archive)?"): "Project",
    ("GET", rf"{_PROJECT}/api_keys"): "ProjectApiKeyListResponse",
    ("GET", rf"{_PROJECT}/api_keys/{_ID}"): "ProjectApiKey",
    ("DELETE", rf"{_PROJECT}/api_keys/{_ID}"): "ProjectApiKeyDeleteResponse",
    ("GET", rf"{_PROJECT}/rate_limits"): "ProjectRateLimitListResponse",
    ("POST", rf"{_PROJECT}/rate_limits/{_ID}"): "ProjectRateLimit",
    ("GET", "/organization/usage/completions"): "UsageResponse",
}
"""The published object of each route, below /v1."""

_STREAMED = {
    "CreateChatCompletionResponse": "CreateChatCompletionStreamResponse",
    "CreateCompletionResponse": "CreateCompletionResponse",
}

_ALSO_ALLOWED: dict[str, dict[str, Any]] = {
    # The published pause example answers so, though the list of words does not have it.
    "FineTuningJob.status": {"words": ("paused", "pausing")},
    # An empty page has no ids; the real service answers null as well.
    "ListFilesResponse.first_id": {"types": ("null",)},
    "ListFilesResponse.last_id": {"types": ("null",)},
    "ChatCompletionList.first_id": {"types": ("null",)},
    "ChatCompletionList.last_id": {"types": ("null",)},
    "ProjectListResponse.first_id": {"types": ("null",)},
    "ProjectListResponse.last_id": {"types": ("null",)},
    "ProjectApiKeyListResponse.first_id": {"types": ("null",)},
    "ProjectApiKeyListResponse.last_id": {"types": ("null",)},
    # A chunk that is not the last one has no reason yet.
    "CreateCompletionResponse.choices[].finish_reason": {"types": ("null",)},
    # Null is no limit, which the real service always has.
    "ProjectRateLimit.max_requests_per_1_minute": {"types": ("null",)},
    "ProjectRateLimit.max_tokens_per_1_minute": {"types": ("null",)},
}


def object_of(exchange: Exchange) -> str | None:
    """The published object that the answer must be; None where nothing is published."""
    if exchange.status >= 400:
        return "ErrorResponse"
    below = exchange.path.removeprefix("/v1")
    return next(
        (name for (method, path), name in ROUTES.items() if method == exchange.method and re.fullmatch(path, below)),
        None,
    )


def faults_of(exchange: Exchange) -> list[str]:
    """What is wrong with the answer."""
    name = object_of(exchange)
    if name is None:
        return []
    if exchange.headers.get("content-type", "").startswith("text/event-stream"):
        if name not in _STREAMED:
            return []
        events = [line[6:] for line in exchange.body.decode().splitlines() if line.startswith("data: {")]
        return [fault for event in events for fault in _faults(_STREAMED[name], json.loads(event))]
    if not exchange.is_json:
        return [f"{name} is answered as {exchange.headers.get('content-type')}"]
    return list(_faults(name, exchange.json))


def _faults(name: str, value: Any) -> Iterator[str]:
    shape = _OBJECTS[name]
    if not isinstance(value, dict):
        yield f"{name} is {value!r}"
        return
    for key in shape["required"]:
        if key not in value:
            yield f"{name} lacks {key}"
    for key, types in shape["types"].items():
        if key in value:
            yield from _key_faults(name, key, types, value[key])


def _key_faults(name: str, key: str, types: str, found: Any) -> Iterator[str]:
    shape = _OBJECTS[name]
    exceptions = _ALSO_ALLOWED.get(f"{name}.{key}", {})
    allowed = {*types.split("|"), *exceptions.get("types", ())}
    # Strict clients read an optional key that is null as one that is absent.
    if found is None and key not in shape["required"]:
        return
    if "any" not in allowed and not _types_of(found) & allowed:
        yield f"{name}.{key} is {found!r}, not {types}"
        return
    words = shape.get("enums", {}).get(key)
    if words and isinstance(found, str) and found not in (*words, *exceptions.get("words", ())):
        yield f"{name}.{key} is {found!r}, not one of {words}"
    if isinstance(found, dict) and key in shape.get("nested", {}):
        yield from _faults(shape["nested"][key], found)
    if isinstance(found, list) and key in shape.get("items", {}):
        for item in found:
            yield from _faults(shape["items"][key], item)


def _types_of(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    names: dict[type, str] = {float: "number", str: "string", list: "array", dict: "object"}
    return {names[type(value)]}
