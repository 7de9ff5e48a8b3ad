"""What only the folder store has: links, drafts, empty folders."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tunesmith_server.auth import Signer
from tunesmith_server.clock import system_clock
from tunesmith_server.errors import UnavailableError
from tunesmith_server.storage import filesystem
from tunesmith_server.storage.filesystem import FilesystemStore
from tunesmith_server.storage.signed_urls import UrlSigner


def open_folder(root: Path) -> FilesystemStore:
    return FilesystemStore(root, UrlSigner(Signer(b"x"), "http://test", system_clock))


@pytest.fixture
def store(tmp_path: Path) -> FilesystemStore:
    return open_folder(tmp_path)


async def test_a_copy_takes_no_room(store: FilesystemStore, tmp_path: Path) -> None:
    await store.put_bytes("a/b", b"x")
    await store.copy("a/b", "c/d")
    assert (tmp_path / "a/b").samefile(tmp_path / "c/d")


async def test_a_copy_works_where_links_do_not(
    store: FilesystemStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    await store.put_bytes("a/b", b"x")
    monkeypatch.setattr(os, "link", no_links)
    await store.copy("a/b", "c/d")
    assert (tmp_path / "c/d").read_bytes() == b"x"
    assert not (tmp_path / "a/b").samefile(tmp_path / "c/d")


async def test_empty_folders_go_with_their_last_object(store: FilesystemStore, tmp_path: Path) -> None:
    await store.put_bytes("runs/a/e1/w", b"x")
    await store.put_bytes("runs/b/w", b"x")
    await store.delete("runs/a/e1/w")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["b"]


async def test_old_drafts_go_at_the_next_start(store: FilesystemStore, tmp_path: Path) -> None:
    old, young = tmp_path / ".drafts/old", tmp_path / ".drafts/young"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (time.time() - 100_000,) * 2)
    open_folder(tmp_path)
    assert [path.name for path in (tmp_path / ".drafts").iterdir()] == ["young"]


async def test_a_broken_folder_is_unavailable(store: FilesystemStore) -> None:
    await store.put_bytes("a", b"x")
    with pytest.raises(UnavailableError) as raised:
        await store.put_bytes("a/b", b"x")
    assert raised.value.code == "storage_unavailable"


def test_a_copy_leaves_out_what_is_deleted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "files").mkdir(parents=True)
    (source / "files" / "kept").write_bytes(b"kept")
    monkeypatch.setattr(filesystem, "_list_keys", lambda _root, _prefix: ["files/gone", "files/kept"])
    filesystem.copy_objects(source, target)
    assert [path.name for path in (target / "files").iterdir()] == ["kept"]
