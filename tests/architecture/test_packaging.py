"""Manifests: the SDK stays light, and development has all that the wheels declare."""

from __future__ import annotations

import re
import tomllib
from typing import Any

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
        for extra in ("server", "trainer", "inference")
        for requirement in root[extra]
        if "<" not in requirement
    ]
    assert not unbounded, f"{unbounded}: the next major release must not arrive unseen"
