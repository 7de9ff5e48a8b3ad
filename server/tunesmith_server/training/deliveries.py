"""Owns the checks on what a run says it uploaded: safe paths, sizes, hashes, and that the objects are there.

It must not know jobs or the database.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.registry.manifest import ArtifactKind, ManifestFile, is_safe_path
from tunesmith_server.storage.base import ObjectNotFoundError, ObjectStore

_MAX_FILES = 2048
_MAX_UPLOAD_BYTES = 5 * 1024**3  # of one PUT to S3
_MAX_RESULT_BYTES = 256 * 1024**2
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KINDS = {pb.ARTIFACT_KIND_ADAPTER: ArtifactKind.ADAPTER, pb.ARTIFACT_KIND_FULL: ArtifactKind.FULL}


def checked_files(files: Sequence[pb.UploadFile]) -> list[ManifestFile]:
    """The files if all have safe paths, sizes within the limits and hashes; raises InvalidRequestError."""
    if len(files) > _MAX_FILES or len({file.path for file in files}) != len(files):
        raise InvalidRequestError("invalid_upload", f"Name each file once, and at most {_MAX_FILES} of them.")
    for file in files:
        if not is_safe_path(file.path):
            raise InvalidRequestError("invalid_upload", f"{file.path[:80]!r} is not a plain relative path.")
        if not 0 <= file.size <= _MAX_UPLOAD_BYTES:
            message = f"{file.path} must have at most {_MAX_UPLOAD_BYTES} bytes; write the weights in shards."
            raise InvalidRequestError("invalid_upload", message)
        if not _SHA256.fullmatch(file.sha256):
            message = f"The sha256 of {file.path} must be 64 lower-case hex digits."
            raise InvalidRequestError("invalid_upload", message)
    return [ManifestFile(path=file.path, size=file.size, sha256=file.sha256) for file in files]


def checked_artifact(artifact: pb.Artifact, weights: str | None) -> ArtifactKind:
    """The artifact's kind if the job can have it, under a safe prefix; raises InvalidRequestError.

    Where engines could not load its adapter, a job with LoRA weights gives whole weights with the adapter merged in.
    `weights` is None where either kind will do.
    """
    kind = _KINDS.get(artifact.kind)
    if kind is None or (weights == "full" and kind is not ArtifactKind.FULL):
        raise InvalidRequestError("invalid_artifact", f"A job with weights {weights} needs an artifact of that kind.")
    if not is_safe_path(artifact.prefix):
        raise InvalidRequestError("invalid_artifact", f"{artifact.prefix[:80]!r} is not a plain relative path.")
    return kind


async def require_stored(store: ObjectStore, prefix: str, files: Sequence[ManifestFile]) -> None:
    """Raises InvalidRequestError unless an object of the declared size lies under `prefix` for each file.

    Hashes are not read here: whoever resumes from these files checks them.
    """
    for file in files:
        if await store.size(f"{prefix}/{file.path}") != file.size:
            raise _not_as_declared(file)


async def require_identical(store: ObjectStore, prefix: str, files: Sequence[ManifestFile]) -> None:
    """Like require_stored, and reads each object to compare its hash; for small files only."""
    for file in files:
        if file.size > _MAX_RESULT_BYTES:
            raise InvalidRequestError("invalid_upload", f"{file.path} may have at most {_MAX_RESULT_BYTES} bytes.")
    await require_stored(store, prefix, files)
    for file in files:
        digest = hashlib.sha256()
        try:
            async for chunk in store.read(f"{prefix}/{file.path}"):
                await asyncio.to_thread(digest.update, chunk)
        except ObjectNotFoundError as error:
            raise _not_as_declared(file) from error
        if digest.hexdigest() != file.sha256:
            raise _not_as_declared(file)


def _not_as_declared(file: ManifestFile) -> InvalidRequestError:
    return InvalidRequestError("invalid_upload", f"{file.path} was not uploaded with the declared size and sha256.")
