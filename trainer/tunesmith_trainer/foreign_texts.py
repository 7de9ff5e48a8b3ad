"""Owns whether what lies beside uploaded weights - tokenizer, template, stop tokens - says the same as the base's.
Must not know weights. Reads the files as data: no tokenizer is loaded and no template is run that a user has sent."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith_trainer.errors import BadData, Problem

_TOKENIZER = "tokenizer.json"
_SENTENCEPIECE = "tokenizer.model"
_TEMPLATE = "chat_template.jinja"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_STOPS = ("generation_config.json", "config.json")  # the first that tells them is heeded
_LISTED = 5
_SPLITTERS = ("normalizer", "pre_tokenizer")
# What older libraries leave unsaid of a step, or newer ones.
_STEP_DEFAULTS: dict[str, dict[str, Any]] = {
    "ByteLevel": {"use_regex": True},
    "Metaspace": {"prepend_scheme": "always", "split": True, "add_prefix_space": True},
}
_WITHOUT_EFFECT = frozenset({"trim_offsets", "str_rep"})


def require_same_texts(folder: Path, base: Path, stop_ids: Sequence[int]) -> None:
    """Raises BadData where the files that both have differ in what they mean: served is the base's own.

    The stop tokens that the upload names must be among the base's, `stop_ids`.
    """
    pieces = folder / _SENTENCEPIECE, base / _SENTENCEPIECE
    if all(path.is_file() for path in pieces) and pieces[0].read_bytes() != pieces[1].read_bytes():
        raise _problem("tokenizer_differs", _SENTENCEPIECE, "tokenizer")
    tokenizers = folder / _TOKENIZER, base / _TOKENIZER
    if all(path.is_file() for path in tokenizers):
        _require_same_tokenizer(*map(_object, tokenizers))
    template = _template(folder)
    if template is not None and template != _template(base):
        raise _problem("chat_template_differs", "chat template", "chat template")
    _require_same_stops(folder, base, stop_ids)


def _require_same_tokenizer(sent: dict[str, Any], own: dict[str, Any]) -> None:
    if _tokens(sent) != _tokens(own):
        raise _problem("tokenizer_differs", _TOKENIZER, "tokenizer")
    for part in _SPLITTERS:
        if part in sent and _steps(sent[part]) != _steps(own.get(part)):
            raise _problem("tokenizer_differs", f"{part} in {_TOKENIZER}", "tokenizer")


def _require_same_stops(folder: Path, base: Path, own: Sequence[int]) -> None:
    """An answer that ends with what is no stop token to the base would be followed by another, up to its limit."""
    name = next((name for name in _STOPS if _stops(folder / name)), None)
    if name is None:
        return
    others = [stop for stop in _stops(folder / name) if stop not in (*own, *_stops(base / name))]
    if others:
        message = (
            f"eos_token_id in {name} has {str(others[:_LISTED])[:120]}, but a tuned model is served with the base's "
            f"own stop tokens, {list(own)}. Choose the base model that it was tuned from. If the model ends its "
            "answers with one of these, set eos_token_id to it; otherwise tune it to do so."
        )
        raise BadData(Problem("stop_tokens_differ", message, "file"))


def _stops(path: Path) -> list[Any]:
    told = _object(path).get("eos_token_id") if path.is_file() else None
    return [] if told is None else told if isinstance(told, list) else [told]


def _steps(part: Any) -> list[Any]:
    """What is done to a text, step by step: the same whichever version of the library wrote it."""
    if not isinstance(part, dict):
        return [] if part is None else [part]
    sequence = part.get("pretokenizers", part.get("normalizers"))
    steps = _list(sequence) if part.get("type") == "Sequence" else [part]
    return [_step(step) if isinstance(step, dict) else step for step in steps]


def _step(step: dict[str, Any]) -> dict[str, Any]:
    told = _STEP_DEFAULTS.get(str(step.get("type")), {}) | step
    return {name: value for name, value in told.items() if name not in _WITHOUT_EFFECT}


def _tokens(document: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Which token has which number, and which are joined: the same however a library writes it."""
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
        f"model that it was tuned from, or leave the file out: the model then answers with the base's {kind}."
    )
    return BadData(Problem(code, message, "file"))
