"""Owns what an artifact is made of: file names, limits, the canonical manifest and the revision id.

It must not know storage, the database or what the weights mean; everything here is pure.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from tunesmith_server.errors import Problem

MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.json"
MAX_SMALL_FILE_BYTES = 64 * 1024 * 1024
"""Bound of every file that is not weights."""

_MAX_WEIGHT_FILE_BYTES = 256 * 1024**3
_MAX_FILES = 2048
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,127}){0,3}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")

TEXT_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
    }
)
"""What a folder needs beside weights, so that prompts are rendered and answers end as in training."""
LICENCE_FILES = frozenset({"LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE.md", "NOTICE.txt"})
"""What of a base model has to go along wherever its weights go."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

_ADAPTER_FILES = frozenset({ADAPTER_WEIGHTS, ADAPTER_CONFIG, GOLDEN_NAME})
_FULL_FILES = TEXT_FILES | {"config.json", "model.safetensors", "model.safetensors.index.json", GOLDEN_NAME}
_BASE_SUFFIXES = (".json", ".safetensors", ".txt", ".jinja", ".model", ".md")


class ArtifactKind(StrEnum):
    """What a revision holds."""

    ADAPTER = "adapter"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file: path relative to the folder, size in bytes, SHA-256 in lower-case hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BaseManifest:
    """A base model's manifest as it lies in the cache."""

    id: str
    files: tuple[ManifestFile, ...]


def tuned_manifest(kind: ArtifactKind, base_model_id: str, base_revision: str, files: Iterable[ManifestFile]) -> bytes:
    """Canonical JSON of a tuned artifact: the same files on the same base give the same bytes."""
    return canonical_json(
        {"kind": kind.value, "base_model": base_model_id, "base_revision": base_revision, "files": _sorted(files)}
    )


def base_manifest(model_id: str, files: Iterable[ManifestFile]) -> bytes:
    """Canonical JSON of a base model."""
    return canonical_json({"id": model_id, "files": _sorted(files)})


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def revision_id(manifest: bytes) -> str:
    """The content address of an artifact: hex SHA-256 of its manifest."""
    return hashlib.sha256(manifest).hexdigest()


def is_revision_id(text: str) -> bool:
    """Whether the text looks like the id of a revision."""
    return _SHA256.fullmatch(text) is not None


def parse_base_manifest(content: bytes) -> BaseManifest:
    """Reads a base model's manifest; raises ValueError with a sentence when it is not a canonical one of ours."""
    try:
        value = json.loads(content)
        files = tuple(ManifestFile(path=f["path"], size=f["size"], sha256=f["sha256"]) for f in value["files"])
        model_id = value["id"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("The manifest is not a list of files with path, size and sha256.") from error
    if not isinstance(model_id, str) or not all(_is_typed(file) for file in files):
        raise ValueError("The manifest has values of the wrong type.")
    problems = base_file_problems(files)
    if problems:
        raise ValueError(problems[0].message)
    if base_manifest(model_id, files) != content:
        raise ValueError("The manifest is not in canonical form.")
    return BaseManifest(id=model_id, files=files)


def artifact_file_problems(kind: ArtifactKind, files: Sequence[ManifestFile]) -> list[Problem]:
    """All that is wrong with the file list of a tuned artifact."""
    allowed = _ADAPTER_FILES if kind is ArtifactKind.ADAPTER else _FULL_FILES
    problems = _list_problems(files)
    for file in files:
        if file.path not in allowed and not (kind is ArtifactKind.FULL and _SHARD.fullmatch(file.path)):
            message = f"{_shown(file.path)} does not belong into this kind of artifact; only safetensors weights and "
            problems.append(Problem("file_not_allowed", message + "the files beside them are accepted."))
    paths = {file.path for file in files}
    missing = _ADAPTER_FILES - paths if kind is ArtifactKind.ADAPTER else {"config.json", GOLDEN_NAME} - paths
    problems += [Problem("file_missing", f"{name} is missing.") for name in sorted(missing)]
    if kind is ArtifactKind.FULL and not any(_is_weights(file.path) for file in files):
        problems.append(Problem("file_missing", "model.safetensors is missing."))
    return problems


def foreign_file_problems(kind: ArtifactKind, sizes: Mapping[str, int]) -> list[Problem]:
    """All that is wrong with the files, by name, of a model that was tuned elsewhere; it has no golden answers yet."""
    is_full = kind is ArtifactKind.FULL
    allowed = (_FULL_FILES if is_full else _ADAPTER_FILES | TEXT_FILES) - {GOLDEN_NAME}
    problems = []
    for path, size in sizes.items():
        if path not in allowed and not (is_full and _SHARD.fullmatch(path)):
            message = f"{_shown(path)} is not a file of a tuned model; leave it out. Weights must be safetensors."
            problems.append(Problem("file_not_allowed", message))
        elif not 0 < size <= _limit(path):
            problems.append(Problem("size_invalid", f"{path} must have 1 to {_limit(path)} bytes."))
    if is_full and not any(_is_weights(path) for path in sizes):
        problems.append(Problem("file_missing", "model.safetensors is missing."))
    if not is_full and ADAPTER_WEIGHTS not in sizes:
        problems.append(Problem("file_missing", f"{ADAPTER_WEIGHTS} is missing."))
    return problems


def base_file_problems(files: Sequence[ManifestFile]) -> list[Problem]:
    """All that is wrong with the file list of a base model."""
    problems = _list_problems(files)
    for file in files:
        if not file.path.endswith(_BASE_SUFFIXES) and file.path != "LICENSE":
            problems.append(Problem("file_not_allowed", f"{_shown(file.path)} is not a kind of file that is served."))
    if not any(file.path == "config.json" for file in files):
        problems.append(Problem("file_missing", "config.json is missing."))
    return problems


def is_safe_path(path: str) -> bool:
    """Whether a relative path may be joined to a folder or a storage prefix."""
    return _PATH.fullmatch(path) is not None


def _list_problems(files: Sequence[ManifestFile]) -> list[Problem]:
    if len(files) > _MAX_FILES:
        return [Problem("too_many_files", f"There are more than {_MAX_FILES} files.")]
    problems = []
    for file in files:
        if not is_safe_path(file.path):
            problems.append(Problem("path_invalid", f"{_shown(file.path)} is not a plain relative path."))
        elif not _SHA256.fullmatch(file.sha256):
            problems.append(Problem("hash_invalid", f"The sha256 of {file.path} must be 64 lower-case hex digits."))
        elif not 0 < file.size <= _limit(file.path):
            problems.append(Problem("size_invalid", f"{file.path} must have 1 to {_limit(file.path)} bytes."))
    if len({file.path for file in files}) != len(files):
        problems.append(Problem("path_repeated", "Two files have the same path."))
    return problems


def _is_typed(file: ManifestFile) -> bool:
    return isinstance(file.path, str) and isinstance(file.sha256, str) and type(file.size) is int


def _is_weights(path: str) -> bool:
    return path.endswith(".safetensors")


def _limit(path: str) -> int:
    return _MAX_WEIGHT_FILE_BYTES if _is_weights(path) else MAX_SMALL_FILE_BYTES


def _sorted(files: Iterable[ManifestFile]) -> list[dict[str, Any]]:
    return [asdict(file) for file in sorted(files, key=lambda file: file.path)]


def _shown(path: str) -> str:
    return repr(path[:80])
