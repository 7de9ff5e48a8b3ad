"""A file on its way in lives exactly as long as it is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tunesmith_server.errors import PayloadTooLargeError
from tunesmith_server.files.drafts import receive
from tunesmith_server.files.limits import SizeLimit

LIMIT = SizeLimit(3, "too_large", "Send less.", "data")


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def assert_empty(folder: Path) -> None:
    assert list(folder.iterdir()) == []


async def test_what_is_received_is_measured_and_gone_afterwards(tmp_path: Path) -> None:
    async with receive(tmp_path, stream(b"ab", b"", b"c"), LIMIT, with_md5=True) as upload:
        assert upload.path.read_bytes() == b"abc"
        assert upload.size == 3
        assert upload.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert upload.md5 == "900150983cd24fb0d6963f7d28e17f72"
    assert_empty(tmp_path)


async def test_too_much_is_refused_at_the_limit(tmp_path: Path) -> None:
    with pytest.raises(PayloadTooLargeError) as raised:
        async with receive(tmp_path, stream(b"abc", b"d"), LIMIT):
            pass
    assert (raised.value.code, raised.value.param) == ("too_large", "data")
    assert_empty(tmp_path)
