"""Owns by what start a file that is not JSON Lines at all is known, so that it gets one answer instead of one per line.

It must not know what a row must look like. Pure.
"""

from __future__ import annotations

import re

from tunesmith_server.errors import Problem

_SAVE_AS = "upload the rows as JSON Lines (.jsonl), one JSON object on each line"
_BINARY = (
    (b"\x1f\x8b", "not_jsonl", "is compressed with gzip; decompress it and upload the .jsonl file"),
    (b"PK\x03\x04", "not_jsonl", f"is a ZIP archive or an Excel workbook; {_SAVE_AS}"),
    (b"PAR1", "not_jsonl", f"is a Parquet table; {_SAVE_AS}"),
    (b"\xff\xfe", "not_utf8", "is UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "not_utf8", "is UTF-16; save it as UTF-8"),
)
_OLD_LINE_BREAK = re.compile(rb"\}[ \t]*\r[ \t\r]*\{")
"""Two objects with a carriage return between them, which is no JSON in any line."""


def wrong_format(number: int, line: bytes) -> Problem | None:
    """What is wrong with the whole file, by its first line with data."""
    for start, code, what in _BINARY:
        if line.startswith(start):
            return Problem(code, f"The file {what}.", "file")
    if line.lstrip().startswith(b"["):
        what = "begins with [, as a JSON array does; write one object on each line (JSONL), without [ and ] around them"
        return Problem("not_an_object", f"Line {number} {what}.", "file", number)
    if line.strip() == b"{":
        what = "is only the { of an object; write each object on one line (JSONL), without indentation"
        return Problem("invalid_json", f"Line {number} {what}.", "file", number)
    if _OLD_LINE_BREAK.search(line):
        what = "The lines end with a carriage return alone, as on old Macs; save the file with line feeds (LF)."
        return Problem("invalid_json", what, "file", number)
    return None
