"""Owns how the architecture tests find and parse our sources.

It must not know any rule.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = {
    "server": ROOT / "server" / "tunesmith_server",
    "trainer": ROOT / "trainer" / "tunesmith_trainer",
    "inference": ROOT / "inference" / "tunesmith_inference",
    "sdk": ROOT / "sdk" / "tunesmith",
}
SCRIPTS = (ROOT / "proto" / "generate.py", ROOT / "deploy" / "install.py")


@dataclass(frozen=True, slots=True)
class Module:
    """One source file and its syntax tree."""

    folder: str
    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        """Path relative to the repository, for messages."""
        return str(self.path.relative_to(ROOT))


@cache
def modules() -> tuple[Module, ...]:
    """Every hand-written module of the product; migrations and generated code are left out."""
    found = [
        Module(folder, path, ast.parse(path.read_text()))
        for folder, root in PACKAGES.items()
        for path in sorted(root.rglob("*.py"))
        if "versions" not in path.parts
    ]
    found += [Module("scripts", path, ast.parse(path.read_text())) for path in SCRIPTS]
    found += [
        Module("examples", path, ast.parse(path.read_text())) for path in sorted((ROOT / "sdk/examples").glob("*.py"))
    ]
    return tuple(found)


def imported_names(tree: ast.Module) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names
