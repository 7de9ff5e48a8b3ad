"""The Tunesmith SDK: fine-tune models on your own machines and talk to them.
These are all its public names; the shapes of answers are in `tunesmith.types`.
"""

from tunesmith._client import AsyncTunesmith, Tunesmith
from tunesmith._errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APIStreamError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    FineTuneFailedError,
    InternalServerError,
    ModelFailedError,
    NotFoundError,
    PermissionDeniedError,
    Problem,
    RateLimitError,
    RequestTooLargeError,
    TunesmithError,
    UnexpectedResponseError,
    UnprocessableEntityError,
    WaitTimeoutError,
)
from tunesmith._pagination import AsyncPage, Page
from tunesmith._streaming import AsyncStream, Stream
from tunesmith._version import __version__
from tunesmith.resources.fine_tunes import FineTuneUpdate

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APIStreamError",
    "APITimeoutError",
    "AsyncPage",
    "AsyncStream",
    "AsyncTunesmith",
    "AuthenticationError",
    "BadRequestError",
    "ConfigurationError",
    "ConflictError",
    "FineTuneFailedError",
    "FineTuneUpdate",
    "InternalServerError",
    "ModelFailedError",
    "NotFoundError",
    "Page",
    "PermissionDeniedError",
    "Problem",
    "RateLimitError",
    "RequestTooLargeError",
    "Stream",
    "Tunesmith",
    "TunesmithError",
    "UnexpectedResponseError",
    "UnprocessableEntityError",
    "WaitTimeoutError",
    "__version__",
]

# Tracebacks and help() then name what users import, `tunesmith.NotFoundError`.
for _name in __all__:
    if isinstance(_public := globals()[_name], type):
        _public.__module__ = __name__
