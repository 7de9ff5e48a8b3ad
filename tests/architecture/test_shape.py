"""Size, names and docstrings: a reader must be able to hold one file in mind."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.source_tree import ROOT, Module, modules

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
BANNED_NAMES = ("utils", "helpers", "common", "manager", "misc")


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_files_stay_small(module: Module) -> None:
    lines = len(module.path.read_text().splitlines())
    assert lines <= MAX_FILE_LINES, f"{module.name} has {lines} lines: find its second reason to exist and split it"


def test_files_of_tests_stay_small() -> None:
    long = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*.py")
        if len(path.read_text().splitlines()) > MAX_FILE_LINES
    ]
    assert not long, f"{long} have over {MAX_FILE_LINES} lines: find their second reason to exist and split them"


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_functions_stay_small(module: Module) -> None:
    long = [
        f"{node.name} ({length(node)})"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and length(node) > MAX_FUNCTION_LINES
    ]
    assert not long, f"{module.name}: {long} are over {MAX_FUNCTION_LINES} lines; split them by what they decide"


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_modules_say_what_they_own(module: Module) -> None:
    docstring = ast.get_docstring(module.tree)
    assert docstring, f"{module.name} has no docstring: the first line says what it owns, then what it must not know"


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_public_things_have_docstrings(module: Module) -> None:
    bare = [name for name, node in public_definitions(module.tree) if not ast.get_docstring(node)]
    assert not bare, f"{module.name}: {bare} have no docstring; a public name says its effect, units and errors"


def test_names_say_what_is_inside() -> None:
    names = [
        str(path.relative_to(ROOT))
        for root in ("server", "trainer", "inference", "sdk", "proto/tunesmith", "deploy", "tests")
        for path in (ROOT / root).rglob("*")
        if any(banned in path.stem.split("_") for banned in BANNED_NAMES)
    ]
    assert not names, f"{names}: these names hide what is inside"


def test_tests_mirror_the_source() -> None:
    sources = {str(module.path.relative_to(ROOT)) for module in modules()}
    strays = []
    for folder, package in (
        ("server", "tunesmith_server"),
        ("trainer", "tunesmith_trainer"),
        ("inference", "tunesmith_inference"),
        ("sdk", "tunesmith"),
    ):
        for test in (ROOT / "tests" / folder).rglob("test_*.py"):
            inside = test.relative_to(ROOT / "tests" / folder)
            stem = inside.stem.removeprefix("test_")
            candidates = {
                f"{folder}/{package}/{inside.with_name(f'{name}.py')}" for name in (stem, f"_{stem}", f"__{stem}__")
            }
            package_folder = ROOT / folder / package / inside.with_name(stem)
            if not candidates & sources and not package_folder.is_dir():
                strays.append(str(test.relative_to(ROOT)))
    assert not strays, f"{strays} mirror no source file: a reader finds the test of a file by its path"


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    total = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node):
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Public functions, classes and methods of a module.

    Methods of a class with a base are left out: their docstring stands at the base, a protocol or a servicer.
    """
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef) and not node.bases:
                yield from public_methods(node)


def public_methods(owner: ast.ClassDef) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Methods of a class that callers use."""
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield f"{owner.name}.{node.name}", node
