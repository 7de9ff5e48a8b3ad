"""Owns every error a client of the gateway can get, and its one shape on the wire: OpenAI's envelope.

It must not know what raises them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response


class GatewayError(Exception):
    """An answer other than the one asked for.

    `status` is HTTP's, `code` stable snake_case, `message` a sentence that tells what to do, `param` the request
    parameter at fault, `retry_after` seconds after which the same request may work, `headers` more of the answer's.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.headers = headers or {}


def invalid_request(code: str, message: str, param: str | None = None) -> GatewayError:
    """400: the client has to change the request."""
    return GatewayError(400, code, message, param=param)


def missing_parameter(name: str) -> GatewayError:
    """400: a parameter that the route cannot do without."""
    return invalid_request("missing_required_parameter", f"`{name}` is required.", name)


def unknown_parameter(name: str) -> GatewayError:
    """400: a parameter that means nothing here, which would be ignored in silence otherwise."""
    shown = name[:80]
    message = f"`{shown}` is not supported. Remove it or check its spelling."
    return invalid_request("unknown_parameter", message, shown)


def tools_unsupported(param: str) -> GatewayError:
    """400: the model's chat template has no place for tools, so the model would never hear of them."""
    message = (
        "The chat template of this model's base shows no tools to it. Use a base model whose template does, or ask for "
        "an answer of a given form with `response_format`."
    )
    return GatewayError(400, "tools_unsupported", message, param=param)


def model_not_found(name: str) -> GatewayError:
    """404: no such model, or another project's, which must look the same."""
    message = f"The model `{name[:200]}` does not exist or your key has no access to it."
    return GatewayError(404, "model_not_found", message, param="model")


def rate_limited(what: str, limit: int, wait_seconds: float, headers: Mapping[str, str]) -> GatewayError:
    """429: the key has used up its requests or tokens of this minute."""
    message = f"This key may use {limit} {what} per minute. Send fewer, or ask the operator for more."
    return GatewayError(429, "rate_limit_exceeded", message, retry_after=wait_seconds, headers=headers)


def model_loading() -> GatewayError:
    """503: known, but not ready within the time a request is held."""
    message = "The model is still being loaded. Send the request again in a few seconds."
    return GatewayError(503, "model_loading", message, param="model", retry_after=5)


def overloaded() -> GatewayError:
    """503: the gateway has as many requests as it takes on, or the model more than its share of them."""
    message = "Too many requests are waiting here. Send this one again in a moment."
    return GatewayError(503, "overloaded", message, retry_after=1)


def prompt_refused(param: str) -> GatewayError:
    """400: the operator's moderation flags the prompt."""
    message = "The moderation of this server refuses the prompt. Change what is asked."
    return GatewayError(400, "content_policy_violation", message, param=param)


def moderation_unavailable() -> GatewayError:
    """503: whether a text may pass cannot be asked, and without a verdict none does."""
    message = "The moderation of this server cannot be reached at the moment. Send the request again in a few seconds."
    return GatewayError(503, "moderation_unavailable", message, retry_after=5)


def embeddings_unsupported() -> GatewayError:
    """400: models here are made to write, and engines give no embeddings of them."""
    message = "Models here write text and give no embeddings. Ask a server of embedding models for those."
    return GatewayError(400, "embeddings_unsupported", message, param="model")


def model_unservable() -> GatewayError:
    """503: the engine does not reproduce what was trained, so the model is kept from traffic; /health says why."""
    message = "The model failed its check in the engine and is not served. Ask the operator for the gateway's /health."
    return GatewayError(503, "model_failed_verification", message, param="model", retry_after=60)


def control_plane_unavailable() -> GatewayError:
    """503: the key cannot be checked right now."""
    message = "API keys cannot be checked at the moment. Send the request again in a few seconds."
    return GatewayError(503, "control_plane_unavailable", message, retry_after=5)


def engine_failed() -> GatewayError:
    """500: the engine failed on this request, or went away before it had answered."""
    message = "The engine failed on this request. Send it again; tell the operator if it keeps failing."
    return GatewayError(500, "engine_error", message)


def internal_error() -> GatewayError:
    """500: a defect of the gateway."""
    return GatewayError(500, "internal_error", "The gateway failed on this request. Tell its operator the request id.")


def envelope(error: GatewayError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`, always with all four keys."""
    return {
        "error": {"message": error.message, "type": _type_of(error.status), "param": error.param, "code": error.code}
    }


def error_response(error: GatewayError) -> Response:
    """The HTTP answer of an error. ASCII only, because a message may quote text that UTF-8 cannot hold."""
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after * 1000))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = json.dumps(envelope(error)).encode("ascii")
    return Response(body, error.status, headers, media_type="application/json")


def _type_of(status: int) -> str:
    if status == 503:
        return "service_unavailable_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
