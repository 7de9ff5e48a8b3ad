"""Owns which files are taken at all: their purposes, names, lifetimes and sizes. Pure.

It must not know their content; dataset_check.py reads that.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from tunesmith_server.errors import InvalidRequestError, PayloadTooLargeError

DATASET_PURPOSE = "fine-tune"
"""Files of this purpose are checked row by row."""
MODEL_PURPOSE = "model"
"""Ours: a tar of a model that was tuned elsewhere, checked as far as that goes without its base model."""
PURPOSES = ("assistants", "batch", DATASET_PURPOSE, "vision", "user_data", "evals", MODEL_PURPOSE)
"""What clients may send; result files have a purpose of their own."""

_MIN_LIFETIME_SECONDS = 3600
_MAX_LIFETIME_SECONDS = 30 * 24 * 3600
_ANCHOR = "created_at"
_MAX_NAME_LENGTH = 200


@dataclass(frozen=True, slots=True)
class ExpiresAfter:
    """When a file shall expire, as the caller wrote it."""

    anchor: str
    seconds: int


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """How many bytes may come, and how it is said when more come."""

    bytes: int
    code: str
    message: str
    param: str

    def refusal(self) -> PayloadTooLargeError:
        """What to raise beyond the limit."""
        return PayloadTooLargeError(self.code, self.message, param=self.param)


def file_limit(max_bytes: int) -> SizeLimit:
    """The limit of a file that comes in one piece."""
    message = f"The file may have at most {max_bytes} bytes. Send a larger one in parts by /v1/uploads, or split it."
    return SizeLimit(max_bytes, "file_too_large", message, "file")


def upload_limit(max_bytes: int) -> SizeLimit:
    """The limit of a file that comes in parts."""
    message = f"The file may have at most {max_bytes} bytes. Split it into several files."
    return SizeLimit(max_bytes, "file_too_large", message, "bytes")


def part_limit(max_bytes: int) -> SizeLimit:
    """The limit of one part of an upload."""
    message = f"A part may have at most {max_bytes} bytes. Send more and smaller parts."
    return SizeLimit(max_bytes, "part_too_large", message, "data")


def check_purpose(purpose: str) -> None:
    """Raises InvalidRequestError for a purpose that clients may not send."""
    if purpose not in PURPOSES:
        message = f"Files can be uploaded for the purposes {', '.join(PURPOSES)}."
        raise InvalidRequestError("invalid_purpose", message, param="purpose")


def lifetime_seconds(expires_after: ExpiresAfter | None) -> int | None:
    """Seconds that a file shall live, None without an end; raises InvalidRequestError."""
    if expires_after is None:
        return None
    if expires_after.anchor != _ANCHOR:
        message = f"`expires_after.anchor` must be {_ANCHOR}."
        raise InvalidRequestError("invalid_value", message, param="expires_after.anchor")
    if not _MIN_LIFETIME_SECONDS <= expires_after.seconds <= _MAX_LIFETIME_SECONDS:
        message = f"`expires_after.seconds` must be from {_MIN_LIFETIME_SECONDS} to {_MAX_LIFETIME_SECONDS}."
        raise InvalidRequestError("invalid_value", message, param="expires_after.seconds")
    return expires_after.seconds


def display_name(filename: str) -> str:
    """The last part of a client's file name, without anything that could deceive a reader or a shell."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    visible = "".join(char for char in last if unicodedata.category(char)[0] != "C" and char not in "\u2028\u2029")
    return visible.strip(" .")[:_MAX_NAME_LENGTH] or "upload"
