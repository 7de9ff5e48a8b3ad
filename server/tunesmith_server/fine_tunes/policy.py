"""Owns what an installation allows of a create call: model, files, method, rank, integrations, idempotency key.

It must not know how a job is stored; shape is checked before, in schemas.py.
"""

from __future__ import annotations

import re

from tunesmith_server.config import Settings
from tunesmith_server.db.tables import FileRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError
from tunesmith_server.files.dataset_check import is_plain_text
from tunesmith_server.fine_tunes.references import ADAPTER_SETTINGS, Origin, References
from tunesmith_server.fine_tunes.schemas import CreateFineTune
from tunesmith_server.trackers.installation import LABELS, why_not

_RAW_TEXT = "continued_pretraining"
METHODS = ("supervised", "dpo", _RAW_TEXT)
"""What trainers here can do; other methods have their shape checked and are refused."""
WEIGHTS = ("lora", "full")

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def check_idempotency_key(key: str | None) -> None:
    """Raises InvalidRequestError for a key that cannot be stored."""
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        message = "An Idempotency-Key must be 1 to 255 printable ASCII characters without spaces."
        raise InvalidRequestError("invalid_idempotency_key", message, param="Idempotency-Key")


def check_options(request: CreateFineTune, settings: Settings) -> None:
    """Raises InvalidRequestError for options that no trainer or engine here can honour."""
    _check_method(request)
    _check_training(request, settings.max_lora_rank)
    _check_integrations(request, settings)


def check_references(found: References, request: CreateFineTune, settings: Settings) -> Origin:
    """What the job starts from; raises InvalidRequestError when that or a file does not exist or cannot be used.

    A tuned model that is deleted or not the project's raises NotFoundError, as wherever else its name is said.
    """
    origin = _usable(found.origin, request)
    method = request.method.type if request.method is not None else "supervised"
    for param, file_id, min_rows in (
        # Raw text is counted in pieces, which only the preflight can do.
        ("training_file", request.training_file, 1 if method == _RAW_TEXT else settings.min_training_rows),
        ("validation_file", request.validation_file, 1),
    ):
        if file_id is not None:
            file = _usable_file(found.files.get(file_id), file_id, param)
            _check_rows(file, param, method, min_rows)
    return origin


def _usable(origin: Origin | None, request: CreateFineTune) -> Origin:
    if origin is None:
        message = (
            f"The model {request.model!r} cannot be fine-tuned here. GET /v1/models lists the base models, "
            "and the project's tuned models, which can be tuned further."
        )
        kind = NotFoundError if request.model.startswith("ft:") else InvalidRequestError
        raise kind("model_not_found", message, param="model")
    if origin.deleted:
        message = f"The model {request.model} was deleted or is no longer kept. Start from another one."
        raise NotFoundError("model_deleted", message, param="model")
    if origin.adapter and request.training.weights == "lora":
        _check_adapter(origin, request)
    return origin


def _check_adapter(origin: Origin, request: CreateFineTune) -> None:
    """Raises InvalidRequestError when the adapter that is to be continued would have to be another one."""
    for name in ADAPTER_SETTINGS:
        asked, own = getattr(request.training, name), origin.adapter.get(name)
        if asked not in ("auto", None) and not _is_same(asked, own):
            message = (
                f"The adapter of {request.model} has another {name}, which training it further cannot change. "
                f"Leave {name} out, or start from the base model."
            )
            raise InvalidRequestError("warm_start_mismatch", message, param=f"training.{name}")


def _is_same(asked: object, own: object) -> bool:
    if isinstance(asked, list):
        return isinstance(own, list) and set(asked) == set(own)
    return (asked or None) == own


def _usable_file(file: FileRow | None, file_id: str, param: str) -> FileRow:
    if file is None:
        message = f"There is no file {file_id[:80]!r} in this project. Upload it with purpose fine-tune first."
        raise InvalidRequestError("file_not_found", message, param=param)
    if file.purpose != "fine-tune":
        message = f"The file {file_id} has the purpose {file.purpose}. Upload it with purpose fine-tune."
        raise InvalidRequestError("invalid_purpose", message, param=param)
    if file.status != "processed":
        message = f"The file {file_id} has the status {file.status} and cannot be used. Upload it again."
        raise InvalidRequestError("file_not_processed", message, param=param)
    return file


def _check_rows(file: FileRow, param: str, method: str, min_rows: int) -> None:
    if method != _RAW_TEXT and is_plain_text(file.filename):
        message = (
            f"The file {file.id} is a .txt file, which counts as one text and is for method {_RAW_TEXT}. "
            "If it holds JSON lines, rename it to .jsonl and upload it again."
        )
        raise InvalidRequestError("wrong_row_type", message, param=param)
    if (file.rows or 0) < min_rows:
        message = f"The file {file.id} has {file.rows or 0} rows, but at least {min_rows} are needed. Add rows."
        raise InvalidRequestError("invalid_n_examples", message, param=param)


def _check_method(request: CreateFineTune) -> None:
    if request.method is not None and request.method.type not in METHODS:
        offered = ", ".join(METHODS)
        message = f"The method {request.method.type} is not offered here yet. Set method.type to one of: {offered}."
        raise InvalidRequestError("unsupported_method", message, param="method.type")


def _check_integrations(request: CreateFineTune, settings: Settings) -> None:
    named = [integration.type for integration in request.integrations or ()]
    for index, tracker in enumerate(named):
        param = f"integrations.{index}.type"
        reason = why_not(tracker, settings)
        if reason is not None:
            raise InvalidRequestError("integration_not_configured", reason, param=param)
        if tracker in named[:index]:
            message = f"A job can name {LABELS[tracker]} once. Remove the second one."
            raise InvalidRequestError("duplicate_integration", message, param=param)


def _check_training(request: CreateFineTune, max_lora_rank: int) -> None:
    training = request.training
    if training.lora_rank != "auto" and training.lora_rank > max_lora_rank:
        message = f"Serving engines here load adapters up to rank {max_lora_rank}. Ask for at most {max_lora_rank}."
        raise InvalidRequestError("lora_rank_too_high", message, param="training.lora_rank")
    for name in ADAPTER_SETTINGS:
        if training.weights == "full" and getattr(training, name) not in ("auto", None):
            message = f"Full weights have no {name}. Leave it out or set training.weights to lora."
            raise InvalidRequestError("invalid_value", message, param=f"training.{name}")
