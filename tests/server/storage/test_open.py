"""The URL chooses the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith_server.auth import Signer
from tunesmith_server.config import Settings
from tunesmith_server.storage.filesystem import FilesystemStore
from tunesmith_server.storage.open import open_store


async def test_the_default_is_a_folder_in_the_home(tmp_path: Path) -> None:
    store = open_store(Settings(home=tmp_path / "my home"), Signer(b"x"))
    assert isinstance(store, FilesystemStore)
    await store.put_bytes("a", b"x")
    assert (tmp_path / "my home" / "objects" / "a").read_bytes() == b"x"


@pytest.mark.parametrize("url", ["ftp://x/y", "s3://", "file://", "file:///", "file://host/x", "/folder"])
def test_other_urls_are_refused_with_the_name_of_the_setting(url: str) -> None:
    with pytest.raises(ValueError, match="TUNESMITH_STORAGE_URL"):
        open_store(Settings(storage_url=url), Signer(b"x"))
