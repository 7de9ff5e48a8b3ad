from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tunesmith_inference import errors
from tunesmith_inference.errors import GatewayError, error_response


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.invalid_request("invalid_value", "No.", "n"), 400, "invalid_request_error"),
        (GatewayError(401, "invalid_api_key", "No."), 401, "invalid_request_error"),
        (errors.model_not_found("m"), 404, "invalid_request_error"),
        (errors.rate_limited("requests", 1, 0.2, {}), 429, "rate_limit_error"),
        (errors.engine_failed(), 500, "server_error"),
        (errors.overloaded(), 503, "service_unavailable_error"),
        (errors.model_loading(), 503, "service_unavailable_error"),
        (errors.model_unservable(), 503, "service_unavailable_error"),
        (errors.control_plane_unavailable(), 503, "service_unavailable_error"),
    ],
)
def test_every_error_has_openais_envelope(error: GatewayError, status: int, kind: str) -> None:
    response = error_response(error)
    body = json.loads(bytes(response.body))
    assert response.status_code == status
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["type"], body["error"]["code"]) == (kind, error.code)
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_no_refusal_that_passes_is_made_without_a_time_to_come_back() -> None:
    for source in Path(errors.__file__).parent.glob("*.py"):
        for line in re.findall(r"GatewayError\((?:429|503).*", source.read_text()):
            assert "retry_after=" in line, f"{source.name}: {line}"


def test_text_that_utf8_cannot_hold_can_be_quoted() -> None:
    assert "\\ud800" in bytes(error_response(errors.model_not_found("\ud800")).body).decode()
