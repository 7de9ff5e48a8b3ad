"""Owns how a protobuf Struct becomes the JSON object that it stands for.

It must not know what is in it.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct


def plain_object(struct: Struct) -> dict[str, Any]:
    """A Struct knows floats only: whole ones become integers again, as the same call by REST would have them."""
    return {name: _whole(value) for name, value in MessageToDict(struct).items()}


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return value
