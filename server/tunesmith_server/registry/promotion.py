"""Owns the way from bytes that a run uploaded to a revision: copy, verify the copy, seal it with its manifest.

It must not know jobs, the database or transports.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith_server.errors import InvalidRequestError, Problem, UnavailableError
from tunesmith_server.failpoints import reach
from tunesmith_server.registry import adapter_rules
from tunesmith_server.registry.full_rules import full_problems
from tunesmith_server.registry.golden import golden_problems
from tunesmith_server.registry.manifest import (
    GOLDEN_NAME,
    MANIFEST_NAME,
    MAX_SMALL_FILE_BYTES,
    ArtifactKind,
    BaseManifest,
    ManifestFile,
    artifact_file_problems,
    parse_base_manifest,
    revision_id,
    tuned_manifest,
)
from tunesmith_server.registry.repository import Revision
from tunesmith_server.registry.safetensors_header import HeaderCollector, HeaderError, Tensor
from tunesmith_server.storage.base import ObjectNotFoundError, ObjectStore

_READ_WHOLE = frozenset({"adapter_config.json", "config.json", "model.safetensors.index.json", GOLDEN_NAME})


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a run says it uploaded: files below the storage key `prefix`, made on a base model's revision."""

    kind: ArtifactKind
    prefix: str
    files: tuple[ManifestFile, ...]
    base_model_id: str
    base_revision: str


def revision_of(artifact: Artifact) -> Revision:
    """The revision that the artifact will be, if its bytes are as said; raises InvalidRequestError for wrong files."""
    _reject(artifact_file_problems(artifact.kind, artifact.files))
    return Revision(
        id=revision_id(_manifest(artifact)),
        kind=artifact.kind,
        base_model_id=artifact.base_model_id,
        base_revision=artifact.base_revision,
        files=artifact.files,
    )


async def promote(store: ObjectStore, artifact: Artifact, max_lora_rank: int, *, mend: bool = False) -> Revision:
    """Turns verified bytes into a revision; the same artifact gives the same one without new work.

    With `mend` that one's bytes are looked at again, and what is no longer as it was is copied anew.
    Raises InvalidRequestError with code `artifact_rejected` and every problem found.
    """
    revision = revision_of(artifact)
    folder = f"revisions/{revision.id}"
    if await store.size(f"{folder}/{MANIFEST_NAME}") is None:
        base = await base_shapes(store, artifact.base_revision)
        # The copy is verified and not the original: its run could still write to that one.
        try:
            await _copy(store, artifact.prefix, artifact.files, folder)
            _reject(await _content_problems(store, artifact, folder, base, max_lora_rank))
        except InvalidRequestError:
            for file in artifact.files:
                await store.delete(f"{folder}/{file.path}")
            raise
        reach("promotion.copied")
        await store.put_bytes(f"{folder}/{MANIFEST_NAME}", _manifest(artifact))
        reach("promotion.sealed")
    elif mend:
        await _mend(store, artifact, folder)
    return revision


async def read_base_manifest(store: ObjectStore, revision: str) -> BaseManifest:
    """The manifest of a published base model; raises ObjectNotFoundError."""
    content = await _read_whole(store, f"base_models/{revision}/{MANIFEST_NAME}")
    if revision_id(content) != revision:
        raise UnavailableError("base_model_damaged", f"The stored manifest of base model {revision} is damaged.")
    return parse_base_manifest(content)


async def base_shapes(store: ObjectStore, revision: str) -> adapter_rules.Shapes:
    """Shapes of a published base model's weights by name; reads the headers only."""
    try:
        shapes: dict[str, tuple[int, ...]] = {}
        for file in (await read_base_manifest(store, revision)).files:
            if file.path.endswith(".safetensors"):
                tensors = await _read_header(store, f"base_models/{revision}/{file.path}", file.size)
                shapes |= {name: tensor.shape for name, tensor in tensors.items()}
    except (ObjectNotFoundError, HeaderError) as error:
        message = f"The base model {revision} is not whole in object storage. Import it again."
        raise UnavailableError("base_model_damaged", message) from error
    return shapes


def _manifest(artifact: Artifact) -> bytes:
    return tuned_manifest(artifact.kind, artifact.base_model_id, artifact.base_revision, artifact.files)


async def _mend(store: ObjectStore, artifact: Artifact, folder: str) -> None:
    """Replaces what is damaged of a sealed revision, file by file: whoever reads the others is not disturbed."""
    damaged = [file for file in artifact.files if (await _verify(store, f"{folder}/{file.path}", file)).problems]
    await _copy(store, artifact.prefix, damaged, folder)
    for file in damaged:
        _reject((await _verify(store, f"{folder}/{file.path}", file)).problems)


async def _copy(store: ObjectStore, prefix: str, files: Iterable[ManifestFile], folder: str) -> None:
    missing = []
    for file in files:
        try:
            await store.copy(f"{prefix}/{file.path}", f"{folder}/{file.path}")
        except ObjectNotFoundError:
            missing.append(Problem("file_missing", f"{file.path} was not uploaded."))
    _reject(missing)


async def _content_problems(
    store: ObjectStore, artifact: Artifact, folder: str, base: adapter_rules.Shapes, max_lora_rank: int
) -> list[Problem]:
    problems: list[Problem] = []
    contents: dict[str, bytes] = {}
    tensors: dict[str, Tensor] = {}
    for file in artifact.files:
        verified = await _verify(store, f"{folder}/{file.path}", file)
        problems += verified.problems
        contents[file.path] = verified.content
        repeated = tensors.keys() & verified.tensors.keys()
        if repeated:
            problems.append(Problem("tensor_repeated", f"{min(repeated)[:120]!r} is in two files."))
        tensors |= verified.tensors
    if problems:
        return problems
    problems += golden_problems(contents[GOLDEN_NAME])
    if artifact.kind is ArtifactKind.FULL:
        return problems + full_problems(_json(contents["config.json"]), tensors)
    config = _json(contents["adapter_config.json"])
    lint = adapter_rules.config_problems(config, base_model_id=artifact.base_model_id, max_rank=max_lora_rank)
    return problems + (lint or adapter_rules.tensor_problems(config, tensors, base))


@dataclass(frozen=True, slots=True)
class _Verified:
    problems: list[Problem]
    content: bytes
    tensors: dict[str, Tensor]


async def _verify(store: ObjectStore, key: str, file: ManifestFile) -> _Verified:
    """Streams one object once: its size, hash, header of tensors, and its content where rules look into it."""
    digest = hashlib.sha256()
    header = HeaderCollector() if file.path.endswith(".safetensors") else None
    content = bytearray()
    size = 0
    try:
        async for chunk in store.read(key):
            size += len(chunk)
            if size > file.size:
                break
            await asyncio.to_thread(digest.update, chunk)
            if header is not None:
                header.feed(chunk)
            elif file.path in _READ_WHOLE:
                content += chunk
        if size != file.size:
            return _failed("size_mismatch", f"{file.path} does not have the declared {file.size} bytes.")
        if digest.hexdigest() != file.sha256:
            return _failed("hash_mismatch", f"{file.path} does not have the declared sha256.")
        tensors = header.tensors(file.size) if header is not None else {}
    except HeaderError as error:
        return _failed("safetensors_invalid", f"{file.path}: {error}")
    except ObjectNotFoundError:
        return _failed("file_missing", f"{file.path} was not uploaded.")
    return _Verified([], bytes(content), tensors)


def _failed(code: str, message: str) -> _Verified:
    return _Verified([Problem(code, message)], b"", {})


async def _read_header(store: ObjectStore, key: str, size: int) -> dict[str, Tensor]:
    header = HeaderCollector()
    async for chunk in store.read(key):
        header.feed(chunk)
        if header.complete:
            break
    return header.tensors(size)


async def _read_whole(store: ObjectStore, key: str) -> bytes:
    content = bytearray()
    async for chunk in store.read(key):
        content += chunk
        if len(content) > MAX_SMALL_FILE_BYTES:
            raise UnavailableError("object_too_large", f"The stored object {key} is larger than it can be.")
    return bytes(content)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _reject(problems: Sequence[Problem]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        message = f"The artifact was refused: {problems[0].message}{more}"
        raise InvalidRequestError("artifact_rejected", message, problems=problems[:100])
