"""What an artifact may hold, and how it gets its id."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.artifacts import adapter_files, declared, full_files
from tunesmith_server.registry.manifest import (
    ArtifactKind,
    ManifestFile,
    artifact_file_problems,
    base_file_problems,
    base_manifest,
    is_safe_path,
    parse_base_manifest,
    revision_id,
    tuned_manifest,
)

CONFIG = ManifestFile("config.json", 2, "0" * 64)
WEIGHTS = ManifestFile("model.safetensors", 100, "1" * 64)


def test_the_revision_is_the_hash_of_canonical_json() -> None:
    content = base_manifest("toy", [WEIGHTS, CONFIG])

    expected = {
        "id": "toy",
        "files": [
            {"path": "config.json", "size": 2, "sha256": "0" * 64},
            {"path": "model.safetensors", "size": 100, "sha256": "1" * 64},
        ],
    }
    assert content == json.dumps(expected, sort_keys=True, separators=(",", ":")).encode()
    assert revision_id(content) == hashlib.sha256(content).hexdigest()


def test_the_order_of_files_does_not_matter_but_the_base_does() -> None:
    files = declared(adapter_files())

    forward = tuned_manifest(ArtifactKind.ADAPTER, "toy", "a" * 64, files)

    assert tuned_manifest(ArtifactKind.ADAPTER, "toy", "a" * 64, files[::-1]) == forward
    assert tuned_manifest(ArtifactKind.ADAPTER, "toy", "b" * 64, files) != forward


def test_a_base_manifest_is_read_back() -> None:
    manifest = parse_base_manifest(base_manifest("toy", [WEIGHTS, CONFIG]))

    assert (manifest.id, manifest.files) == ("toy", (CONFIG, WEIGHTS))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"id":"toy"}',
        b'{"files":[{"path":["a"],"sha256":"","size":1}],"id":"toy"}',
        b'{"files":[{"path":"config.json","sha256":"","size":true}],"id":"toy"}',
        b"[" * 100_000,
        base_manifest("toy", [CONFIG]) + b"\n",
        base_manifest("toy", [CONFIG, replace(WEIGHTS, path="../model.safetensors")]),
        base_manifest("toy", [CONFIG, replace(WEIGHTS, path="pytorch_model.bin")]),
    ],
)
def test_anything_else_is_no_manifest(content: bytes) -> None:
    with pytest.raises(ValueError):
        parse_base_manifest(content)


@given(st.binary(max_size=200))
def test_reading_a_manifest_never_crashes(content: bytes) -> None:
    with pytest.raises(ValueError, match="manifest"):
        parse_base_manifest(content)


def test_plain_artifacts_are_without_problems() -> None:
    assert artifact_file_problems(ArtifactKind.ADAPTER, declared(adapter_files())) == []
    assert artifact_file_problems(ArtifactKind.FULL, declared(full_files())) == []
    assert base_file_problems([CONFIG, WEIGHTS]) == []


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("adapter_model.bin", "file_not_allowed"),
        ("pytorch_model.bin", "file_not_allowed"),
        ("modeling_toy.py", "file_not_allowed"),
        ("weights.pkl", "file_not_allowed"),
        ("../adapter_config.json", "path_invalid"),
        ("/etc/passwd", "path_invalid"),
        ("a\\b.json", "path_invalid"),
        ("", "path_invalid"),
        ("adapter_config.json", "path_repeated"),
    ],
)
def test_a_file_that_does_not_belong_has_its_code(path: str, code: str) -> None:
    files = [*declared(adapter_files()), ManifestFile(path, 1, "0" * 64)]

    assert code in {problem.code for problem in artifact_file_problems(ArtifactKind.ADAPTER, files)}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"size": 0}, "size_invalid"),
        ({"size": 65 * 1024**2}, "size_invalid"),
        ({"sha256": "A" * 64}, "hash_invalid"),
        ({"sha256": "0" * 63}, "hash_invalid"),
    ],
)
def test_an_impossible_size_or_hash_has_its_code(change: dict[str, Any], code: str) -> None:
    files = [replace(CONFIG, **change), WEIGHTS, ManifestFile("golden.json", 1, "0" * 64)]

    assert [problem.code for problem in artifact_file_problems(ArtifactKind.FULL, files)] == [code]


def test_missing_files_are_named() -> None:
    adapter = artifact_file_problems(ArtifactKind.ADAPTER, [])
    full = artifact_file_problems(ArtifactKind.FULL, [])

    assert {problem.message for problem in adapter} == {
        "adapter_config.json is missing.",
        "adapter_model.safetensors is missing.",
        "golden.json is missing.",
    }
    assert {problem.message for problem in full} >= {"config.json is missing.", "model.safetensors is missing."}


def test_weights_may_be_sharded() -> None:
    files = [
        CONFIG,
        ManifestFile("golden.json", 1, "0" * 64),
        replace(WEIGHTS, path="model-00001-of-00002.safetensors"),
    ]

    assert artifact_file_problems(ArtifactKind.FULL, files) == []


def test_the_number_of_files_is_bounded() -> None:
    files = [ManifestFile(f"model-{number:05}-of-99999.safetensors", 1, "0" * 64) for number in range(3000)]

    assert "too_many_files" in {problem.code for problem in artifact_file_problems(ArtifactKind.FULL, files)}


@given(st.text())
def test_a_safe_path_stays_inside_its_folder(path: str) -> None:
    if is_safe_path(path):
        assert ".." not in path.split("/")
        assert not path.startswith(("/", "."))
        assert "\0" not in path
