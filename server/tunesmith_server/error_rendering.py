"""Owns how errors look on the wire: the one table from error class to HTTP and gRPC, and both renderings.

It must not know which operation failed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse

from tunesmith_server.errors import (
    ConflictError,
    FencedError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    Problem,
    QuotaExceededError,
    StorageFullError,
    TunesmithError,
    UnauthenticatedError,
    UnavailableError,
)

Shape = TypeVar("Shape", bound=BaseModel)

ERROR_DOMAIN = "tunesmith"

# gRPC drops a whole answer whose trailing metadata is over 8 KiB, base64 and all.
_MAX_GRPC_MESSAGE = 1000
_MAX_VIOLATIONS_BYTES = 3000

_MISSING = ("missing", "union_tag_not_found")
"""What pydantic calls an absent value: of a field, and of the field that says which shape is meant."""
_OBJECT_TYPES = ("model_type", "model_attributes_type", "dict_type")
"""What pydantic calls a value that is no object; its message speaks of Python."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """One row of the table."""

    http_status: int
    openai_type: str
    grpc_code: grpc.StatusCode


RENDERINGS: Mapping[type[TunesmithError], Rendering] = {
    InvalidRequestError: Rendering(400, "invalid_request_error", grpc.StatusCode.INVALID_ARGUMENT),
    PayloadTooLargeError: Rendering(413, "invalid_request_error", grpc.StatusCode.INVALID_ARGUMENT),
    UnauthenticatedError: Rendering(401, "invalid_request_error", grpc.StatusCode.UNAUTHENTICATED),
    PermissionDeniedError: Rendering(403, "invalid_request_error", grpc.StatusCode.PERMISSION_DENIED),
    NotFoundError: Rendering(404, "invalid_request_error", grpc.StatusCode.NOT_FOUND),
    ConflictError: Rendering(409, "invalid_request_error", grpc.StatusCode.FAILED_PRECONDITION),
    FencedError: Rendering(409, "invalid_request_error", grpc.StatusCode.FAILED_PRECONDITION),
    QuotaExceededError: Rendering(429, "rate_limit_error", grpc.StatusCode.RESOURCE_EXHAUSTED),
    UnavailableError: Rendering(503, "service_unavailable_error", grpc.StatusCode.UNAVAILABLE),
    StorageFullError: Rendering(507, "server_error", grpc.StatusCode.RESOURCE_EXHAUSTED),
    InternalError: Rendering(500, "server_error", grpc.StatusCode.INTERNAL),
}


def rendering_of(error: TunesmithError) -> Rendering:
    """The row of the error's class, or of the nearest class above it."""
    return next(RENDERINGS[cls] for cls in type(error).__mro__ if cls in RENDERINGS)


def http_response(error: TunesmithError) -> JSONResponse:
    """The error in OpenAI's envelope; `problems` is added when several things are wrong."""
    rendering = rendering_of(error)
    body: dict[str, Any] = {
        "message": error.message,
        "type": rendering.openai_type,
        "param": error.param,
        "code": error.code,
    }
    if error.problems:
        body["problems"] = [
            {"code": problem.code, "message": problem.message, "param": problem.param, "line": problem.line}
            for problem in error.problems
        ]
    return _AsciiJSONResponse({"error": body}, status_code=rendering.http_status, headers=_headers(error, rendering))


def grpc_status(error: TunesmithError) -> status_pb2.Status:
    """The error as google.rpc.Status with ErrorInfo, and BadRequest, RetryInfo or QuotaFailure where they say more."""
    rendering = rendering_of(error)
    info = error_details_pb2.ErrorInfo(reason=error.code, domain=ERROR_DOMAIN)
    if error.param is not None:
        info.metadata["param"] = _clean(error.param)
    status = status_pb2.Status(code=rendering.grpc_code.value[0], message=_clean(error.message))
    status.details.append(_packed(info))
    request = _bad_request(error)
    if request.field_violations:
        status.details.append(_packed(request))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(_milliseconds(error.retry_after))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if isinstance(error, QuotaExceededError):
        failure = error_details_pb2.QuotaFailure()
        failure.violations.add(subject=error.code, description=_clean(error.message))
        status.details.append(_packed(failure))
    return status


def from_validation(errors: Sequence[Mapping[str, Any]], body: object = None) -> InvalidRequestError:
    """One error out of pydantic's list, about the first field at fault.

    `body` is the validated value: it tells field names from the names of union branches in pydantic's paths.
    """
    paths = [_path(error, body) for error in errors]
    error, path = errors[0], paths[0]
    if error["type"] == "json_invalid":
        return InvalidRequestError("invalid_json", f"The body is not valid JSON: {error['ctx']['error']}.")
    if not path:
        message = "Send a JSON object with the header `Content-Type: application/json`."
        return InvalidRequestError("invalid_body", message)
    reasons = dict.fromkeys(_reason(other) for other, at in zip(errors, paths, strict=True) if at == path)
    message = " or ".join(reasons)
    return InvalidRequestError(_validation_code(error["type"]), f"`{path}`: {message}.", param=path)


def read_shape(shape: type[Shape], sent: object) -> Shape:
    """`sent` as the shape, as a REST body would be read; raises InvalidRequestError about the first field at fault."""
    try:
        return shape.model_validate(sent)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False), sent) from error


class _AsciiJSONResponse(JSONResponse):
    """Escapes everything beyond ASCII, because a message may quote text that UTF-8 cannot hold."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode("ascii")


def _headers(error: TunesmithError, rendering: Rendering) -> dict[str, str]:
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
        headers["retry-after-ms"] = str(_milliseconds(error.retry_after))
    elif rendering.http_status in (409, 429):
        # OpenAI's clients repeat these unless told that it is of no use.
        headers["x-should-retry"] = "false"
    if rendering.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def _milliseconds(seconds: float) -> int:
    """Rounded up, so that nobody comes back too early."""
    return math.ceil(seconds * 1000)


def _bad_request(error: TunesmithError) -> error_details_pb2.BadRequest:
    """What is wrong field by field, as much of it as fits."""
    problems = error.problems
    if not problems and error.param is not None and isinstance(error, InvalidRequestError):
        problems = (Problem(error.code, error.message, error.param),)
    request = error_details_pb2.BadRequest()
    for problem in problems:
        field = problem.param or (f"line {problem.line}" if problem.line else "")
        request.field_violations.add(field=_clean(field), description=_clean(problem.message), reason=problem.code)
        if request.ByteSize() > _MAX_VIOLATIONS_BYTES:
            del request.field_violations[-1]
            break
    return request


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _clean(text: str) -> str:
    return text[:_MAX_GRPC_MESSAGE].encode("utf-8", "replace").decode("utf-8")


def _path(error: Mapping[str, Any], body: object) -> str:
    """`hyperparameters.n_epochs` out of ("body", "hyperparameters", "n_epochs", "int")."""
    location = list(error["loc"])
    if location and location[0] in ("query", "path", "header", "cookie"):
        return ".".join(str(part) for part in location[1:])
    parts: list[str] = []
    current = body
    for part in location[1:] if location[:1] == ["body"] else location:
        if (isinstance(current, dict) and part in current) or (isinstance(current, list) and isinstance(part, int)):
            current = current[part]
            parts.append(str(part))
    if error["type"] == "missing" and location[-1] != "body":
        parts.append(str(location[-1]))
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        parts.append(error["ctx"]["discriminator"].strip("'"))
    return ".".join(parts)


def _reason(error: Mapping[str, Any]) -> str:
    if error["type"] in _MISSING:
        return "this parameter is required"
    if error["type"] == "union_tag_invalid":
        return f"input should be one of {error['ctx']['expected_tags']}"
    if error["type"] == "extra_forbidden":
        return "this parameter is not known; remove it or check its spelling"
    if error["type"] in _OBJECT_TYPES:
        return "input should be a JSON object"
    message = str(error["msg"]).removeprefix("Value error, ").removesuffix(".")
    return message[:1].lower() + message[1:]


def _validation_code(kind: str) -> str:
    if kind in _MISSING:
        return "missing_required_parameter"
    if kind == "extra_forbidden":
        return "unknown_parameter"
    return "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"
