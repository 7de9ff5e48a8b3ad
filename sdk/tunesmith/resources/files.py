"""Owns `client.files`: upload, find, read and delete files.
Must not know what a fine-tune does with them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tunesmith._blocking import BlockingResource, blocking
from tunesmith._http import AsyncResource, Call, path_of
from tunesmith._pagination import PageRequest, paging
from tunesmith._patience import wait_until
from tunesmith.types import CompletedUpload, Deleted, File, Identified, ListAnswer

Content = bytes | bytearray | BinaryIO
FileSource = str | os.PathLike[str] | Content | tuple[str, os.PathLike[str] | Content]
"""A local path, bytes, an open binary file, or a pair of file name and one of these; a path in it is a `Path`."""

Progress = Callable[[int, int], object]
"""Hears how many bytes have arrived, and of how many."""

PART_BYTES = 64 * 1024 * 1024
"""Files above this size are sent in parts of it."""

_NAME_OF_NAMELESS = "upload.jsonl"
_MIME_TYPE = "application/octet-stream"


class AsyncFiles(AsyncResource):
    """Files of the project."""

    async def create(
        self,
        *,
        file: FileSource,
        purpose: str = "fine-tune",
        expires_after: int | None = None,
        progress: Progress | None = None,
    ) -> File:
        """Upload a file; an open one is read from its start, a large one goes in parts.

        Args:
            expires_after: seconds from now after which the server deletes it, an hour to 30 days; None keeps it.
            progress: called with the bytes that have arrived and the bytes of the file.

        Raises:
            OSError: the path cannot be read.
            TypeError: the file is nothing that could be sent.
            BadRequestError: the server found mistakes in it; the message names their lines.
        """
        with _opened(file) as (name, content):
            size = _size_of(content)
            if size > PART_BYTES:
                stream = io.BytesIO(content) if isinstance(content, bytes) else content
                return await self._create_in_parts(name, stream, size, purpose, expires_after, progress)
            form = {"purpose": purpose} | {f"expires_after[{key}]": str(value) for key, value in _expiry(expires_after)}
            call = Call("POST", path_of("files"), form=form, file=(name, content), slow=True)
            made = await self._http.fetch(File, call)
        if progress is not None:
            progress(size, size)
        return made

    async def create_once(self, *, file: str | os.PathLike[str], purpose: str = "fine-tune") -> File:
        """Return the stored file with the bytes of this path, and upload it only if there is none that lasts.

        Raises:
            OSError: the path cannot be read.
            BadRequestError: the server found mistakes in it; the message names their lines.
        """
        digest = await self._http.transport.run(lambda: _sha256_of(Path(file)))
        async for stored in self.list(purpose=purpose, sha256=digest):
            # Compared here as well: a server that does not know the filter answers with every file.
            is_same = stored.sha256 == digest and stored.status != "error"
            if is_same and stored.expires_at is None:
                return stored
        return await self.create(file=file, purpose=purpose)

    async def _create_in_parts(
        self,
        name: str,
        stream: BinaryIO,
        size: int,
        purpose: str,
        expires_after: int | None,
        progress: Progress | None,
    ) -> File:
        body: dict[str, object] = {"filename": name, "purpose": purpose, "bytes": size, "mime_type": _MIME_TYPE}
        if expires_after is not None:
            body["expires_after"] = dict(_expiry(expires_after))
        upload = await self._http.fetch(Identified, Call("POST", path_of("uploads"), json=body))
        part_ids: list[str] = []
        md5 = hashlib.md5(usedforsecurity=False)
        sent = 0
        while data := await self._http.transport.run(lambda: stream.read(PART_BYTES)):
            await self._http.transport.run(functools.partial(md5.update, data))
            path = path_of("uploads", upload.id, "parts")
            part = await self._http.fetch(Identified, Call("POST", path, file=(name, data), field="data", slow=True))
            part_ids.append(part.id)
            sent += len(data)
            if progress is not None:
                progress(sent, size)
        body = {"part_ids": part_ids, "md5": md5.hexdigest()}
        call = Call("POST", path_of("uploads", upload.id, "complete"), json=body, slow=True)
        return (await self._http.fetch(CompletedUpload, call)).file

    async def retrieve(self, file_id: str) -> File:
        """Return what is known about a file."""
        return await self._http.fetch(File, Call("GET", path_of("files", file_id)))

    def list(
        self,
        *,
        purpose: str | None = None,
        sha256: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        order: str | None = None,
    ) -> PageRequest[File]:
        """List files, newest first unless `order="asc"`; `sha256` (hex) finds a content."""
        query = {"purpose": purpose, "sha256": sha256, "after": after, "limit": limit, "order": order}
        return PageRequest(self._http, ListAnswer[File], path_of("files"), query)

    async def content(self, file_id: str) -> bytes:
        """Return the bytes of a file."""
        return await self._http.fetch_bytes(Call("GET", path_of("files", file_id, "content"), slow=True))

    async def delete(self, file_id: str) -> Deleted:
        """Delete a file."""
        return await self._http.fetch(Deleted, Call("DELETE", path_of("files", file_id)))

    async def wait_for_processing(
        self,
        file_id: str,
        *,
        poll_interval: float = 1.0,
        timeout: float = 1800.0,  # noqa: ASYNC109 - the synchronous twin, too, has to keep it
    ) -> File:
        """Return the file once the server is done with it; see its `status` for how it went.

        Waiting outlasts restarts of the server.

        Args:
            poll_interval: seconds between two looks.
            timeout: seconds after which to give up.

        Raises:
            WaitTimeoutError: it took longer than `timeout`.
        """
        return await wait_until(
            self._http.transport,
            lambda: self.retrieve(file_id),
            lambda file: None if file.status in {"processed", "error"} else f"File {file_id} was still {file.status}",
            timeout=timeout,
            poll_interval=poll_interval,
        )


class Files(BlockingResource[AsyncFiles]):
    """Files of the project."""

    create = blocking(AsyncFiles.create)
    create_once = blocking(AsyncFiles.create_once)
    retrieve = blocking(AsyncFiles.retrieve)
    list = paging(AsyncFiles.list)
    content = blocking(AsyncFiles.content)
    delete = blocking(AsyncFiles.delete)
    wait_for_processing = blocking(AsyncFiles.wait_for_processing)


@contextlib.contextmanager
def _opened(source: FileSource) -> Iterator[tuple[str, BinaryIO | bytes]]:
    content: str | os.PathLike[str] | Content
    if isinstance(source, tuple):
        if len(source) != 2:
            raise TypeError(f"A file with a name is a pair of name and content, not a tuple of {len(source)}.")
        name, content = source
        if isinstance(content, str):
            raise TypeError("Beside a file's name belongs a Path, bytes or an open file, not text.")
    else:
        name, content = _name_of(source), source
    if isinstance(content, str | os.PathLike):
        with Path(content).open("rb") as stream:
            yield name, _repeatable(stream)
    else:
        yield name, _repeatable(content)


def _name_of(source: str | os.PathLike[str] | Content) -> str:
    named = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    return Path(named).name if isinstance(named, str | os.PathLike) else _NAME_OF_NAMELESS


def _repeatable(content: Content) -> bytes | BinaryIO:
    """Return content that a retry can send a second time: a pipe is read into memory."""
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    if isinstance(content, io.TextIOBase):
        raise TypeError("Open the file in binary mode: open(path, 'rb').")
    if not hasattr(content, "seekable"):
        raise TypeError(f"A file is a path, bytes or a file open in binary mode, not {type(content).__name__}.")
    return content if content.seekable() else content.read()


def _size_of(content: bytes | BinaryIO) -> int:
    """Return the number of bytes; an open file stands at its start afterwards."""
    if isinstance(content, bytes):
        return len(content)
    size = content.seek(0, io.SEEK_END)
    content.seek(0)
    return size


def _expiry(seconds: int | None) -> Sequence[tuple[str, str | int]]:
    return () if seconds is None else (("anchor", "created_at"), ("seconds", seconds))


def _sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
