"""Owns the errors that users of the SDK catch, and which HTTP status raises which.
Must not know how requests are sent or retried.

::

    TunesmithError
    ├── ConfigurationError              no API key, a base URL that is none, or a proxy or certificates of no use
    ├── FineTuneFailedError             a fine-tune that was waited for has failed
    ├── ModelFailedError                an uploaded model that was waited for cannot be served
    ├── WaitTimeoutError                what was waited for took longer than allowed (also a TimeoutError)
    └── APIError
        ├── APIConnectionError          no answer: refused, reset, or cut off in the middle
        │   └── APITimeoutError         no answer in time
        ├── UnexpectedResponseError     an answer that is not Tunesmith's
        ├── APIStreamError              an error that arrived inside a stream
        └── APIStatusError              any other status than 2xx
            ├── BadRequestError         400
            ├── AuthenticationError     401
            ├── PermissionDeniedError   403
            ├── NotFoundError           404
            ├── ConflictError           409
            ├── RequestTooLargeError    413
            ├── UnprocessableEntityError 422
            ├── RateLimitError          429
            └── InternalServerError     500 and above
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.types import FineTune, Model


class TunesmithError(Exception):
    """The root of everything that the SDK raises on purpose.

    Attributes:
        message: a sentence that tells what to do.
        code: a stable snake_case word, or None.
    """

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        # By its attributes: what errors are built from differs from class to class.
        return _rebuilt, (type(self), self.args), self.__dict__


class ConfigurationError(TunesmithError):
    """The client cannot be built from what it was given."""


class FineTuneFailedError(TunesmithError):
    """A fine-tune that was waited for has failed.

    Attributes:
        fine_tune: the job as it ended.
        param: the request parameter at fault, or None.
    """

    def __init__(self, fine_tune: FineTune) -> None:
        reason = fine_tune.error
        why = f"failed: {reason.message if reason else 'the server gave no reason'}"
        super().__init__(
            f"Fine-tune {fine_tune.id} {'was cancelled.' if fine_tune.status == 'cancelled' else why}",
            code=reason.code if reason else None,
        )
        self.fine_tune = fine_tune
        self.param = reason.param if reason else None


class ModelFailedError(TunesmithError):
    """A model that was uploaded and waited for could not be imported.

    Attributes:
        model: what was to become of it.
        param: what is at fault, `file` or `base_model`, or None.
    """

    def __init__(self, model: Model) -> None:
        reason = model.error
        super().__init__(
            f"{model.id} was not imported: {reason.message if reason else 'the server gave no reason'}",
            code=reason.code if reason else None,
        )
        self.model = model
        self.param = reason.param if reason else None


class WaitTimeoutError(TunesmithError, TimeoutError):
    """What was waited for took longer than the caller allowed; it goes on at the server."""


class APIError(TunesmithError):
    """A request to the server did not succeed.

    Attributes:
        type: the server's class of error, or None.
        param: the request parameter at fault, or None.
        request_id: what to name when asking the operator, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        type: str | None = None,  # noqa: A002
        param: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.type = type
        self.param = param
        self.request_id = request_id


class APIConnectionError(APIError):
    """The server was not reached, or the connection broke before the answer was whole."""


class APITimeoutError(APIConnectionError):
    """The server did not answer in time."""


class UnexpectedResponseError(APIError):
    """The answer does not have the expected shape: most often the base URL is another server's."""


class APIStreamError(APIError):
    """The server reported an error after the stream had begun."""


@dataclass(frozen=True)
class Problem:
    """One of the things that are wrong; `line` counts the lines of an uploaded file from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class APIStatusError(APIError):
    """The server answered with an error status.

    Attributes:
        status_code: the HTTP status.
        problems: all that is wrong, where the server lists it: of a refused file, the mistakes with their lines.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        code: str | None = None,
        type: str | None = None,  # noqa: A002
        param: str | None = None,
        request_id: str | None = None,
        problems: tuple[Problem, ...] = (),
    ) -> None:
        super().__init__(message, code=code, type=type, param=param, request_id=request_id)
        self.status_code = status_code
        self.problems = problems


class BadRequestError(APIStatusError):
    """400: the request asks for something that cannot be."""


class AuthenticationError(APIStatusError):
    """401: no API key, or one that the server does not know."""


class PermissionDeniedError(APIStatusError):
    """403: the API key may not do this."""


class NotFoundError(APIStatusError):
    """404: no such object in the key's project."""


class ConflictError(APIStatusError):
    """409: the object's present state does not allow this."""


class RequestTooLargeError(APIStatusError):
    """413: the body is larger than the server accepts."""


class UnprocessableEntityError(APIStatusError):
    """422: the request is well formed and still makes no sense."""


class RateLimitError(APIStatusError):
    """429: too many requests, or a quota is used up."""


class InternalServerError(APIStatusError):
    """500 and above: the server failed, or is not ready yet."""


ERROR_OF_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: RequestTooLargeError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def status_error(status_code: int, body: bytes, request_id: str | None) -> APIStatusError:
    """Return the error of an answer with an error status; a body that is not ours is tolerated."""
    error_class = ERROR_OF_STATUS.get(status_code, InternalServerError if status_code >= 500 else APIStatusError)
    envelope = _envelope_of(body)
    return error_class(
        _text(envelope.get("message")) or f"The server answered with status {status_code}.",
        status_code=status_code,
        code=_text(envelope.get("code")),
        type=_text(envelope.get("type")),
        param=_text(envelope.get("param")),
        request_id=request_id,
        problems=_problems_of(envelope),
    )


def stream_error(envelope: Mapping[str, object], request_id: str | None) -> APIStreamError:
    """Return the error that an event of a stream carries."""
    return APIStreamError(
        _text(envelope.get("message")) or "The server stopped the stream with an error.",
        code=_text(envelope.get("code")),
        type=_text(envelope.get("type")),
        param=_text(envelope.get("param")),
        request_id=request_id,
    )


def _rebuilt(kind: type[TunesmithError], args: tuple[object, ...]) -> TunesmithError:
    """Return an error without its attributes, which unpickling adds."""
    error = kind.__new__(kind)
    error.args = args
    return error


def _envelope_of(body: bytes) -> Mapping[str, object]:
    try:
        decoded = json.loads(body)
    except ValueError:  # a proxy's HTML page, say
        return {}
    envelope = decoded.get("error") if isinstance(decoded, dict) else None
    return envelope if isinstance(envelope, dict) else {}


def _problems_of(envelope: Mapping[str, object]) -> tuple[Problem, ...]:
    listed = envelope.get("problems")
    return tuple(
        Problem(
            code=_text(one.get("code")) or "unknown",
            message=_text(one.get("message")) or "",
            param=_text(one.get("param")),
            line=one["line"] if isinstance(one.get("line"), int) else None,
        )
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, dict)
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
