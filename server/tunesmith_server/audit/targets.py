"""Owns how the id of what a call is about is found in a message, by the names that ids have everywhere.

It must not know any operation; nothing but an id is ever taken out of a message.
"""

from __future__ import annotations

import json

from google.protobuf.message import Message

_MAX_ANSWER_BYTES = 64 * 1024
# The Idempotency-Key of a create call, not the id of anything.
_NO_TARGET = "request_id"


def id_in(message: object) -> str | None:
    """The id in a protobuf request or in the answer that describes what was created."""
    if not isinstance(message, Message):
        return None
    set_fields = {field.name: value for field, value in message.ListFields()}
    texts = {name: value for name, value in set_fields.items() if isinstance(value, str) and name != _NO_TARGET}
    if "id" in texts:
        return texts["id"]
    named = [value for name, value in texts.items() if name.endswith("_id")]
    if named:
        return named[-1]
    return next((found for part in set_fields.values() if (found := id_in(part))), None)


def id_in_json(body: bytes) -> str | None:
    """The id in a small JSON answer."""
    if len(body) > _MAX_ANSWER_BYTES:
        return None
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    found = answer.get("id") if isinstance(answer, dict) else None
    return found if isinstance(found, str) else None
