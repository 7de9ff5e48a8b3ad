"""Owns whether a file of rows can be trained on: reads every line and names all that is wrong. Pure.

It must not know tokenizers (preflight's part), storage or HTTP. What a row must look like is in chat_rows.py and
preference_rows.py, what JSON is in strict_json.py.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from tunesmith_server.errors import Problem
from tunesmith_server.files.chat_rows import chat_row_faults
from tunesmith_server.files.faults import Fault, shown
from tunesmith_server.files.preference_rows import PREFERENCE_KEYS, preference_row_faults
from tunesmith_server.files.strict_json import BadJson, parse
from tunesmith_server.files.wrong_formats import wrong_format

MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_LISTED_PROBLEMS = 100

_CHUNK_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a file holds. `rows` counts lines with data; of `problem_count` problems the first are listed."""

    rows: int
    problems: tuple[Problem, ...]
    problem_count: int


def check_dataset(file: BinaryIO, *, max_line_bytes: int = MAX_LINE_BYTES) -> DatasetReport:
    """Reads the file once, line by line. Blank lines and a byte order mark are skipped, as training skips them.

    A file that is of another format is not read beyond its first line: what is wrong then is one problem.
    """
    rows = problem_count = 0
    problems: list[Problem] = []
    shape: str | None = None
    for number, line in _lines(file, max_line_bytes):
        if rows == 0 and (problem := wrong_format(number, line)):
            return DatasetReport(1, (problem,), 1)
        rows += 1
        faults, row_shape = _check_line(line, max_line_bytes)
        shape = shape or row_shape
        if row_shape is not None and row_shape != shape:
            faults.append(Fault("mixed_row_types", f"is a {row_shape} row, but the first row is a {shape} row"))
        problem_count += len(faults)
        room = MAX_LISTED_PROBLEMS - len(problems)
        problems += [Problem(fault.code, f"Line {number} {fault.what}.", "file", number) for fault in faults[:room]]
    if rows == 0:
        problem_count = 1
        problems = [Problem("empty_file", "The file has no rows. Put one JSON object on each line.", "file")]
    return DatasetReport(rows, tuple(problems), problem_count)


def is_plain_text(filename: str) -> bool:
    """Whether a file of this name is one text to go on pretraining with, not rows."""
    return filename.lower().endswith(".txt")


def check_plain_text(file: BinaryIO) -> DatasetReport:
    """Reads a text once, up to its first problem; it counts as one row."""
    problem = _text_problem(file)
    return DatasetReport(1, () if problem is None else (problem,), 0 if problem is None else 1)


def _text_problem(file: BinaryIO) -> Problem | None:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    lines, is_empty = 1, True
    while True:
        chunk = file.read(_CHUNK_BYTES)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n")
            return Problem("not_utf8", f"Line {line} is not UTF-8; save the file as UTF-8.", "file", line)
        if "\x00" in text:
            line = lines + text[: text.index("\x00")].count("\n")
            return Problem("not_plain_text", f"Line {line} has the character NUL; upload plain text.", "file", line)
        lines += text.count("\n")
        is_empty = is_empty and not text.strip()
        if not chunk:
            return Problem("empty_file", "The file has no text.", "file") if is_empty else None


def _lines(file: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    """1-based numbers and the lines with data; of a line over the limit only its start."""
    number = 0
    while line := file.readline(max_line_bytes + 1):
        number += 1
        rest = line
        while len(rest) > max_line_bytes and not rest.endswith(b"\n"):
            rest = file.readline(max_line_bytes + 1)
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line.strip():
            yield number, line


def _check_line(line: bytes, max_line_bytes: int) -> tuple[list[Fault], str | None]:
    """Faults of one line and its shape, `chat`, `prompt`, `preference` or `text`, as far as it can be told."""
    if len(line) > max_line_bytes:
        return [Fault("line_too_long", f"is longer than {max_line_bytes} bytes; shorten or split the row")], None
    try:
        value = parse(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 at its byte {error.start + 1}; save the file as UTF-8"
        return [Fault("not_utf8", what)], None
    except BadJson as error:
        return [error.fault], None
    if not isinstance(value, dict):
        return [Fault("not_an_object", "is not a JSON object; write {…} on each line")], None
    return _check_row(value)


def _check_row(row: dict[str, Any]) -> tuple[list[Fault], str | None]:
    if any(key in row for key in PREFERENCE_KEYS):
        return list(preference_row_faults(row)), "preference"
    if "messages" in row:
        return list(chat_row_faults(row)), "chat"
    if "prompt" in row or "completion" in row:
        return list(_prompt_row_faults(row)), "prompt"
    if "text" in row:
        return list(_text_row_faults(row)), "text"
    what = 'needs a list "messages", or "prompt" and "completion", or "input" and two outputs, or "text"'
    return [Fault("missing_messages_list", what)], None


def _prompt_row_faults(row: dict[str, Any]) -> Iterator[Fault]:
    for key in ("prompt", "completion"):
        text = row.get(key)
        if not isinstance(text, str):
            yield Fault(f"missing_{key}", f'needs "{key}" as a text')
        elif key == "completion" and not text.strip():
            yield Fault("missing_completion", 'has an empty "completion"')
    for key in sorted(row.keys() - {"prompt", "completion"}):
        yield Fault("row_unrecognized_key", f"has the unknown key {shown(key)}; remove it")


def _text_row_faults(row: dict[str, Any]) -> Iterator[Fault]:
    if not isinstance(row["text"], str) or not row["text"].strip():
        yield Fault("missing_text", 'needs "text" as a text that is not empty')
    for key in sorted(row.keys() - {"text"}):
        yield Fault("row_unrecognized_key", f"has the unknown key {shown(key)}; remove it")
