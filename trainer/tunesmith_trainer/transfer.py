"""Owns moving bytes over presigned URLs: checked downloads into the cache, uploads with retries.
Must not know what the bytes are or who minted the URLs."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx

from tunesmith_trainer.errors import BadSpec, InfrastructureFailed, Problem

MANIFEST_FILE = "manifest.json"
_DRAFT = ".draft-"
_BLOCK = 1 << 20
_ATTEMPTS = 8
_DAMAGED_ATTEMPTS = 3  # in a row: what was damaged on its way comes whole, what lies damaged never does
_GONE = (b"NoSuchKey", b"object_not_found")  # S3's word and the control plane's own; a missing bucket is another
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to fetch. `path` is relative and '/'-separated; `sha256` is lower-case hex."""

    path: str
    size: int
    sha256: str
    url: str


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of ours by content; `path` is relative to the folder that was listed."""

    path: str
    size: int
    sha256: str


def download(files: Iterable[Remote], folder: Path, pause: Callable[[float], None] = time.sleep) -> None:
    """Fetches files into `folder`, going on where a broken transfer stopped, and checks size and hash.

    Raises BadSpec for an unsafe path and InfrastructureFailed when a file cannot be had as described, ObjectDamaged if
    that is because it lies damaged.
    """
    with httpx.Client(timeout=_TIMEOUT) as client:
        for file in files:
            target = folder / safe_path(file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            _persist(lambda file=file, target=target: _fetch(client, file, target), f"fetching {file.path}", pause)  # type: ignore[misc]  # bound per turn


def upload(source: Path, url: str, headers: Mapping[str, str], pause: Callable[[float], None] = time.sleep) -> None:
    """PUTs one file with exactly these headers. Raises InfrastructureFailed when storage does not take it."""
    with httpx.Client(timeout=_TIMEOUT) as client:
        _persist(lambda: _put(client, source, url, headers), f"storing {source.name}", pause)


def cached_base_model(cache: Path, model_id: str, revision: str, files: Sequence[Remote]) -> Path:
    """Folder of a base model in the shared cache, filled first where it is missing.

    The revision must be the hash of the manifest that the files make: what is in the cache is what was meant.
    """
    folder = cache / "base_models" / revision
    if folder.is_dir():
        return folder
    manifest = manifest_bytes(model_id, [LocalFile(file.path, file.size, file.sha256) for file in files])
    if hashlib.sha256(manifest).hexdigest() != revision:
        raise BadSpec(Problem("base_model_mismatch", "The base model's files do not make the revision named.", "model"))
    with draft(folder.parent) as filling:
        download(files, filling)
        (filling / MANIFEST_FILE).write_bytes(manifest)
        publish(filling, folder)
    return folder


@contextmanager
def draft(beside: Path) -> Iterator[Path]:
    """A new folder in `beside`, to be filled and published. What is left of it goes with the block.

    So do the drafts of processes that were killed: a living one holds a lock, where the file system has such.
    """
    beside.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".new-", dir=beside))
    held = os.open(made, os.O_RDONLY)
    with suppress(OSError):
        fcntl.flock(held, fcntl.LOCK_EX)
    # Only now under a name by which others look for what nobody holds.
    filling = made.rename(made.with_name(made.name.replace(".new-", _DRAFT)))
    try:
        for other in beside.glob(f"{_DRAFT}*"):
            _remove_abandoned(other)
        yield filling
    finally:
        shutil.rmtree(filling, ignore_errors=True)
        os.close(held)


def publish(filling: Path, folder: Path) -> None:
    """Gives a filled folder its final name; another process that was first wins, with the same content."""
    filling.chmod(0o755)
    for path in filling.iterdir():
        path.chmod(0o644)
    with suppress(OSError):
        filling.rename(folder)
    if not folder.is_dir():
        raise InfrastructureFailed(Problem("cache_not_writable", "The cache of base models cannot be written."))


def list_files(folder: Path) -> list[LocalFile]:
    """Every file below `folder` with its size and hash, sorted by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [LocalFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path)) for path in paths]


def manifest_bytes(model_id: str, files: Iterable[LocalFile]) -> bytes:
    """Canonical manifest of a base model; its sha256 is the revision."""
    entries = [{"path": file.path, "sha256": file.sha256, "size": file.size} for file in files]
    entries.sort(key=lambda entry: str(entry["path"]))
    return json.dumps({"files": entries, "id": model_id}, sort_keys=True, separators=(",", ":")).encode()


def _remove_abandoned(folder: Path) -> None:
    """Removes a draft unless a living process, this one included, holds it."""
    with suppress(OSError):
        held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(held)


def sha256_of(path: Path) -> str:
    """Lower-case hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_path(path: str) -> PurePosixPath:
    """The path, once it is certain that it stays inside the folder it is joined to. Raises BadSpec."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(bad in path for bad in ("\\", "\0", ":")):
        raise BadSpec(Problem("unsafe_path", f"The spec names a file outside its folder: {path!r}."))
    return PurePosixPath(*parts)


class ObjectDamaged(InfrastructureFailed):
    """Object storage answers, with other bytes than were stored there or that there are none."""


class _TryAgain(Exception):
    """A transfer that broke in a way that may pass."""


class _Damaged(_TryAgain):
    """What came is not what was announced, or nothing is there."""


def _persist(transfer: Callable[[], None], what: str, pause: Callable[[float], None]) -> None:
    damaged = 0
    for attempt in range(_ATTEMPTS):
        try:
            transfer()
        except (httpx.TransportError, _TryAgain) as error:
            damaged = damaged + 1 if isinstance(error, _Damaged) else 0
            if damaged == _DAMAGED_ATTEMPTS:
                raise _damaged(what) from error
            pause(min(30.0, 0.5 * 2**attempt))
        else:
            return
    raise InfrastructureFailed(Problem("storage_unavailable", f"Object storage failed {_ATTEMPTS} times at {what}."))


def _damaged(what: str) -> ObjectDamaged:
    message = (
        f"What object storage holds is not what was stored there; it failed {_DAMAGED_ATTEMPTS} times at {what}. Have "
        "its operator restore it. Of a checkpoint, an earlier one can be the model of a new job."
    )
    return ObjectDamaged(Problem("object_damaged", message))


def _fetch(client: httpx.Client, file: Remote, target: Path) -> None:
    have = target.stat().st_size if target.exists() else 0
    if have < file.size or not target.exists():
        _fetch_rest(client, file, target, have)
    if target.stat().st_size != file.size or sha256_of(target) != file.sha256:
        target.unlink()
        raise _Damaged


def _fetch_rest(client: httpx.Client, file: Remote, target: Path, have: int) -> None:
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", file.url, headers=headers) as response:
        if response.status_code == httpx.codes.NOT_FOUND and _says_gone(response):
            raise _Damaged
        _accept(response)
        mode = "ab" if response.status_code == httpx.codes.PARTIAL_CONTENT and have else "wb"
        with target.open(mode) as sink:
            for block in response.iter_raw():
                sink.write(block)
                if sink.tell() > file.size:
                    break  # longer than announced: the check fails


def _says_gone(response: httpx.Response) -> bool:
    said = next(response.iter_raw(_BLOCK), b"")
    return any(word in said for word in _GONE)


def _put(client: httpx.Client, source: Path, url: str, headers: Mapping[str, str]) -> None:
    sized = httpx.Headers({"Content-Length": str(source.stat().st_size)})
    sized.update(headers)
    _accept(client.put(url, headers=sized, content=_blocks(source)))


def _blocks(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _accept(response: httpx.Response) -> None:
    if response.is_success:
        return
    if response.status_code in (408, 425, 429) or response.is_server_error:
        raise _TryAgain
    # The URL carries a signature: only the status may be told.
    raise InfrastructureFailed(
        Problem("storage_refused", f"Object storage refused a transfer with status {response.status_code}.")
    )
