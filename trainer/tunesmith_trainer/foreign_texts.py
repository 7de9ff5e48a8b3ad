"""Owns whether what lies beside uploaded weights - tokenizer, chat template - says the same as the base model's.
Must not know weights. Reads the files as data: no tokenizer is loaded and no template is run that a user has sent."""

import json
from pathlib import Path
from typing import Any

from tunesmith_trainer.errors import BadData, Problem

_TOKENIZER = "tokenizer.json"
_SENTENCEPIECE = "tokenizer.model"
_TEMPLATE = "chat_template.jinja"
_TOKENIZER_CONFIG = "tokenizer_config.json"


def require_same_texts(folder: Path, base: Path) -> None:
    """Raises BadData where the files that both have differ in what they mean: served is the base's own."""
    if _differs(folder / _SENTENCEPIECE, base / _SENTENCEPIECE, Path.read_bytes):
        raise _problem("tokenizer_differs", _SENTENCEPIECE, "tokenizer")
    if _differs(folder / _TOKENIZER, base / _TOKENIZER, _tokens):
        raise _problem("tokenizer_differs", _TOKENIZER, "tokenizer")
    template = _template(folder)
    if template is not None and template != _template(base):
        raise _problem("chat_template_differs", "chat template", "chat template")


def _differs(path: Path, other: Path, read: Any) -> bool:
    return path.is_file() and other.is_file() and read(path) != read(other)


def _tokens(path: Path) -> tuple[Any, Any, Any]:
    """Which token has which number, and which are joined: the same however a library writes it."""
    document = _object(path)
    model = document.get("model")
    if not isinstance(model, dict):
        return None, None, None
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in _list(model.get("merges"))]
    added = [token for token in _list(document.get("added_tokens")) if isinstance(token, dict)]
    return model.get("vocab"), merges, [(token.get("content"), token.get("id")) for token in added]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _template(folder: Path) -> str | None:
    path = folder / _TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace").strip()
    config = folder / _TOKENIZER_CONFIG
    template = _object(config).get("chat_template") if config.is_file() else None
    return None if template is None else str(template).strip()


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        message = f"{path.name} is not JSON. Leave it out to have the base model's."
        raise BadData(Problem("file_invalid", message, "file")) from error
    return value if isinstance(value, dict) else {}


def _problem(code: str, what: str, kind: str) -> BadData:
    message = (
        f"The {what} is not the base model's, and a tuned model is served with the base's own {kind}. Choose the base "
        f"model that it was tuned from, or leave the file out if the base's {kind} was used."
    )
    return BadData(Problem(code, message, "file"))
