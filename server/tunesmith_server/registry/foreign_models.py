"""Owns the check of a model that was tuned elsewhere, as it is uploaded: known files, sound headers, rules of engines.

It must not know base models: what only shows beside one is for the run that imports it. Loads no weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith_server.errors import Problem
from tunesmith_server.registry import adapter_rules
from tunesmith_server.registry.archive_members import ArchiveError, Member, read_members
from tunesmith_server.registry.full_rules import full_problems
from tunesmith_server.registry.manifest import ADAPTER_CONFIG, ArtifactKind, foreign_file_problems
from tunesmith_server.registry.safetensors_header import LENGTH_BYTES, HeaderCollector, HeaderError, Tensor

_MODEL_CONFIG = "config.json"
_MAX_CONFIG_BYTES = 1024 * 1024
_MAX_HEADER_BYTES = 4 * 1024 * 1024  # of all weights together: tens of thousands of tensors
_MAX_PROBLEMS = 100


def model_problems(path: Path, max_lora_rank: int) -> list[Problem]:
    """All that keeps the archive from being imported; of those that concern several tensors the first hundred."""
    with path.open("rb") as file:
        try:
            members = {member.path: member for member in read_members(file, path.stat().st_size)}
        except ArchiveError as error:
            return [Problem(error.code, str(error))]
        if ADAPTER_CONFIG in members:
            found = _problems(file, members, ArtifactKind.ADAPTER, ADAPTER_CONFIG, _adapter_rules(max_lora_rank))
        elif _MODEL_CONFIG in members:
            found = _problems(file, members, ArtifactKind.FULL, _MODEL_CONFIG, full_problems)
        else:
            message = "The archive has neither an adapter_config.json nor a config.json at its top, so it is no model."
            found = [Problem("file_missing", message)]
    return found[:_MAX_PROBLEMS]


_Rules = Callable[[Any, Mapping[str, Tensor]], list[Problem]]


def _adapter_rules(max_lora_rank: int) -> _Rules:
    def problems(config: Any, tensors: Mapping[str, Tensor]) -> list[Problem]:
        found = adapter_rules.foreign_config_problems(config, max_rank=max_lora_rank)
        return found or adapter_rules.foreign_tensor_problems(config, tensors)

    return problems


def _problems(
    file: BinaryIO, members: Mapping[str, Member], kind: ArtifactKind, config_name: str, rules: _Rules
) -> list[Problem]:
    problems = foreign_file_problems(kind, {member.path: member.size for member in members.values()})
    config = _config(file, members[config_name])
    tensors: dict[str, Tensor] = {}
    room = _MAX_HEADER_BYTES
    for member in members.values():
        if member.path.endswith(".safetensors"):
            try:
                header, length = _tensors(file, member, room)
            except HeaderError as error:
                problems.append(Problem("safetensors_invalid", f"{member.path}: {error}"))
                continue
            room -= length
            repeated = tensors.keys() & header.keys()
            if repeated:
                problems.append(Problem("tensor_repeated", f"{min(repeated)[:120]!r} is in two files."))
            tensors |= header
    return problems or rules(config, tensors)


def _config(file: BinaryIO, member: Member) -> Any:
    """None where it is no JSON, which the rules refuse."""
    if member.size > _MAX_CONFIG_BYTES:
        return None
    file.seek(member.offset)
    try:
        return json.loads(file.read(member.size))
    except (ValueError, RecursionError):
        return None


def _tensors(file: BinaryIO, member: Member, room: int) -> tuple[dict[str, Tensor], int]:
    """The tensors of a file, and the bytes of its header, which may be as many as there is room for."""
    collector = HeaderCollector()
    file.seek(member.offset)
    start = file.read(min(LENGTH_BYTES, member.size))
    collector.feed(start)
    length = int.from_bytes(start, "little")
    if len(start) == LENGTH_BYTES and length > room:
        raise HeaderError(f"The headers of all weights may have {_MAX_HEADER_BYTES} bytes together, and have more.")
    collector.feed(file.read(min(length, member.size - len(start))))
    return collector.tensors(member.size), length
