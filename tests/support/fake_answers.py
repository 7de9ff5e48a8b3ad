"""Owns the forms of the fake REST server's answers, and reads the one form that requests have beside JSON.
Must not know its routes or what it remembers.
"""

from __future__ import annotations

import email
import email.policy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.loopback_http import Answer, Received

Json = dict[str, Any]


def json_answer(decoded: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, json.dumps(decoded).encode(), {"Content-Type": "application/json"} | dict(headers or {}))


def error_answer(
    status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """An answer with the error envelope."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return json_answer({"error": error}, status, headers)


def page(oldest_first: Sequence[Json], request: Received) -> Answer:
    """The page of a list that the request asks for, newest first."""
    items = list(reversed(oldest_first))
    after = request.query.get("after")
    if after is not None:
        items = items[next(place for place, item in enumerate(items) if item["id"] == after) + 1 :]
    limit = int(request.query.get("limit", 20))
    return json_answer({"object": "list", "data": items[:limit], "has_more": len(items) > limit})


def missing(what: str, code: str = "not_found") -> Answer:
    """An answer to a question for what is not there."""
    return error_answer(404, f"There is no {what}.", code)


def model(name: str) -> Json:
    """A model as it is listed."""
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "tunesmith"}


def multipart(request: Received) -> tuple[dict[str, str], str, bytes]:
    """Fields of a form, and the name and content of the file in it."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + request.body, policy=email.policy.HTTP)
    fields: dict[str, str] = {}
    filename, content = "", b""
    for part in message.iter_parts():
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        if part.get_filename():
            filename, content = str(part.get_filename()), payload
        else:
            fields[str(part.get_param("name", header="content-disposition"))] = payload.decode()
    return fields, filename, content
