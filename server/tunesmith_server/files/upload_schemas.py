"""Owns the REST shapes of uploads, as OpenAI's clients know them.

It must not know rows, nor what is allowed beyond the shape of one request.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, StrictInt

from tunesmith_server.files.schemas import FileObject


class ExpiresAfterBody(BaseModel):
    """When the finished file shall expire."""

    model_config = ConfigDict(extra="forbid")

    anchor: str
    seconds: StrictInt


class CreateUpload(BaseModel):
    """The file that will arrive in parts."""

    model_config = ConfigDict(extra="forbid")

    filename: str
    purpose: str
    bytes: StrictInt
    mime_type: str
    expires_after: ExpiresAfterBody | None = None


class CompleteUpload(BaseModel):
    """The parts in the order of the content; `md5` is the hex digest of the whole."""

    model_config = ConfigDict(extra="forbid")

    part_ids: list[str]
    md5: str | None = None


class PartObject(BaseModel):
    """A stored part; `bytes` and `sha256` (hex) are our additions."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
    bytes: int
    sha256: str


class UploadObject(BaseModel):
    """An upload; times are Unix seconds."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str
    expires_at: int
    file: FileObject | None


class UploadWithParts(UploadObject):
    """An upload with the parts that have arrived, for a client that goes on; our addition."""

    parts: list[PartObject]
