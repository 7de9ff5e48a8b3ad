"""Owns how rows of files and uploads look over REST.

It must not know routes or rules.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from sqlalchemy import Row

from tunesmith_server.db.tables import FileRow, UploadPartRow
from tunesmith_server.files.schemas import FileList, FileObject
from tunesmith_server.files.service import FilePage
from tunesmith_server.files.upload_schemas import PartObject, UploadObject
from tunesmith_server.files.upload_service import UploadView

_ANY_BYTES = "application/octet-stream"
_MEDIA_TYPES = {
    "jsonl": "application/jsonl",
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
}
CONTENT_TYPES = (_ANY_BYTES, *_MEDIA_TYPES.values())
"""All that the content of a file may be sent as."""


def file_list(page: FilePage) -> FileList:
    """A page as OpenAI's clients know it."""
    data = [file_object(row) for row in page.files]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return FileList(data=data, first_id=first, last_id=last, has_more=page.has_more)


def file_object(row: FileRow | Row[Any]) -> FileObject:
    """A file as OpenAI's clients know it."""
    return FileObject(
        id=row.id,
        bytes=row.bytes,
        created_at=row.created_at,
        expires_at=row.expires_at,
        filename=row.filename,
        purpose=row.purpose,
        status=row.status,
        sha256=row.sha256,
    )


def content_headers(row: FileRow) -> dict[str, str]:
    """What describes the bytes of a file; only kinds that no browser runs keep their own type."""
    return {
        "content-type": _MEDIA_TYPES.get(row.filename.lower().rpartition(".")[2], _ANY_BYTES),
        "content-length": str(row.bytes),
        "content-disposition": _disposition(row.filename),
        "x-content-type-options": "nosniff",
    }


def upload_object(upload: UploadView) -> UploadObject:
    """An upload as OpenAI's clients know it."""
    row = upload.row
    return UploadObject(
        id=row.id,
        bytes=row.bytes,
        created_at=row.created_at,
        filename=row.filename,
        purpose=row.purpose,
        status=upload.status,
        expires_at=row.expires_at,
        file=file_object(upload.file) if upload.file is not None else None,
    )


def part_object(row: UploadPartRow) -> PartObject:
    """A stored part."""
    return PartObject(id=row.id, created_at=row.created_at, upload_id=row.upload_id, bytes=row.bytes, sha256=row.sha256)


def _disposition(filename: str) -> str:
    """The name in both forms of RFC 6266: plain ASCII for old clients, exact for all others."""
    plain = "".join(char if (char.isascii() and char.isalnum()) or char in "._- " else "_" for char in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
