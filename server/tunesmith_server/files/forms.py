"""Owns how the fields of a multipart body are read: the file in chunks, the rest as text.

It must not know what is done with them. Bodies are read in the routes rather than by parameters, because parameters
are read before the key is checked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.datastructures import FormData, UploadFile

from tunesmith_server.config import MEBIBYTE
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.files.limits import ExpiresAfter

BYTES: dict[str, Any] = {"type": "string", "format": "binary"}
"""JSON schema of a field that holds bytes."""


def described(required: Mapping[str, Any], optional: Mapping[str, Any]) -> dict[str, Any]:
    """What the OpenAPI document says of a route whose form is read here: schemas of its fields by name."""
    schema = {"type": "object", "required": list(required), "properties": {**required, **optional}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def required_file(form: FormData, name: str) -> UploadFile:
    """The field that holds bytes; raises InvalidRequestError when there is none."""
    file = form.get(name)
    if not isinstance(file, UploadFile):
        raise _missing(name, f"Send the bytes as the multipart form field `{name}`, with a file name.")
    return file


def required_text(form: FormData, name: str, example: str) -> str:
    """A field of text; raises InvalidRequestError when there is none."""
    text = form.get(name)
    if not isinstance(text, str):
        raise _missing(name, f"Send the form field `{name}`, for example `{example}`.")
    return text


def expires_after(form: FormData) -> ExpiresAfter | None:
    """`expires_after[anchor]` and `expires_after[seconds]`, both or neither; raises InvalidRequestError."""
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    for name, value in (("anchor", anchor), ("seconds", seconds)):
        if not isinstance(value, str):
            message = f"`expires_after.{name}`: this parameter is required."
            raise _missing(f"expires_after.{name}", message)
    text = str(seconds).strip()
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        message = "`expires_after.seconds` must be a whole number of seconds."
        raise InvalidRequestError("invalid_type", message, param="expires_after.seconds")
    return ExpiresAfter(str(anchor), int(text))


async def chunks_of(file: UploadFile) -> AsyncIterator[bytes]:
    """The bytes in pieces of 1 MiB."""
    while chunk := await file.read(MEBIBYTE):
        yield chunk


def _missing(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError("missing_required_parameter", message, param=param)
