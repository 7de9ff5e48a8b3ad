"""Manifests: the SDK stays light, and development has all that the wheels declare."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from hatchling.build import build_wheel

from tests.architecture.source_tree import ROOT

SDK_LIMIT = 15


def manifest(path: str) -> dict[str, Any]:
    """A parsed pyproject.toml."""
    return tomllib.loads((ROOT / path).read_text())


def names(requirements: list[str]) -> set[str]:
    """Distribution names without versions and extras."""
    return {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in requirements}


def test_development_has_every_dependency_of_the_sdk() -> None:
    root = manifest("pyproject.toml")["project"]
    available = names(root["dependencies"]).union(*(names(extra) for extra in root["optional-dependencies"].values()))
    sdk = manifest("sdk/pyproject.toml")["project"]
    wanted = names(sdk["dependencies"]).union(
        *(names(extra) for extra in sdk.get("optional-dependencies", {}).values())
    )
    assert wanted <= available, "one editable install at the root must be all that development needs"


def test_no_stray_packages_at_the_top() -> None:
    strays = [
        name
        for name in ("server", "trainer", "inference", "sdk", "proto", "deploy")
        if (ROOT / name / "__init__.py").exists()
    ]
    assert not strays, f"{strays} hold an __init__.py: the folder would shadow an import name"


def test_versions_are_bounded_above() -> None:
    root = manifest("pyproject.toml")["project"]["optional-dependencies"]
    unbounded = [
        requirement
        for extra in ("server", "trainer", "inference", "kubernetes", "trackers")
        for requirement in root[extra]
        if "<" not in requirement
    ]
    assert not unbounded, f"{unbounded}: the next major release must not arrive unseen"


def test_typed_stubs_of_the_contract_ship_in_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        shipped = set(wheel.namelist())
    wanted = {"tunesmith_proto/py.typed", "tunesmith_server/py.typed"}
    for proto in (ROOT / "proto/tunesmith").rglob("*.proto"):
        module = f"tunesmith_proto/{proto.relative_to(ROOT / 'proto/tunesmith').with_suffix('')}"
        wanted |= {f"{module}_pb2{kind}" for kind in (".py", ".pyi", "_grpc.py", "_grpc.pyi")}
    assert wanted <= shipped, f"{sorted(wanted - shipped)}: without them a gRPC client has no types"
