"""A file on its way in lives exactly as long as it is needed."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tunesmith_server.errors import PayloadTooLargeError
from tunesmith_server.files.uploads import display_name, receive, remove_stale


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def assert_empty(folder: Path) -> None:
    assert list(folder.iterdir()) == []


async def test_what_is_received_is_measured_and_gone_afterwards(tmp_path: Path) -> None:
    async with receive(tmp_path, stream(b"ab", b"", b"c"), max_bytes=3) as upload:
        assert upload.path.read_bytes() == b"abc"
        assert upload.size == 3
        assert upload.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert_empty(tmp_path)


async def test_too_much_is_refused_at_the_limit(tmp_path: Path) -> None:
    with pytest.raises(PayloadTooLargeError):
        async with receive(tmp_path, stream(b"abc", b"d"), max_bytes=3):
            pass
    assert_empty(tmp_path)


def test_only_old_remains_are_removed(tmp_path: Path) -> None:
    old, young = tmp_path / "old", tmp_path / "young"
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 100_000,) * 2)
    remove_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [young]
    remove_stale(tmp_path / "absent")


def test_names_keep_what_is_harmless() -> None:
    assert display_name("a b'\"c.jsonl") == "a b'\"c.jsonl"
    assert display_name("a\x00\x1b[31m\r\nb") == "a[31mb"
    assert display_name("") == "upload"
