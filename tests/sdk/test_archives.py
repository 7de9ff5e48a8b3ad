"""Archives are unpacked as they arrive, wherever they are cut, and never out of their directory."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.archives import tar_of
from tunesmith import APIConnectionError
from tunesmith._archives import pack, unpack
from tunesmith._errors import UnexpectedResponseError

FILES = {"config.json": b"{}", "shards/model.safetensors": bytes(range(256)) * 9000, "empty": b""}


async def arriving(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


async def run(function: Callable[[], object]) -> object:
    return function()


@pytest.mark.parametrize("size", [100, 512, 700_000, 10_000_000])
async def test_every_file_arrives_whole(tmp_path: Path, size: int) -> None:
    written = await unpack(arriving(tar_of(FILES), size), tmp_path / "new", run)
    assert [path.relative_to(tmp_path / "new").as_posix() for path in written] == list(FILES)
    assert [path.read_bytes() for path in written] == list(FILES.values())
    assert files_below(tmp_path / "new") == set(FILES)


async def test_an_archive_that_ends_early_is_an_error_and_leaves_no_half_file(tmp_path: Path) -> None:
    with pytest.raises(APIConnectionError) as caught:
        await unpack(arriving(tar_of(FILES)[:20_000], 512), tmp_path, run)
    assert caught.value.code == "connection_broken"
    assert files_below(tmp_path) == {"config.json", "shards/model.safetensors.part"}


@pytest.mark.parametrize(
    ("names", "sent"),
    [
        (
            {"adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors", "merges.txt"},
            ["adapter_config.json", "adapter_model.safetensors", "merges.txt"],
        ),
        (
            {"config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "model.bin", "run.log"},
            ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"],
        ),
    ],
)
def test_only_a_models_own_files_are_packed(tmp_path: Path, names: set[str], sent: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 300)
    first, second = io.BytesIO(), io.BytesIO()
    pack(tmp_path, first)
    pack(tmp_path, second)
    assert first.getvalue() == second.getvalue()
    with tarfile.open(fileobj=first) as archive:
        assert archive.getnames() == sent
        assert all(archive.extractfile(name).read() == name.encode() * 300 for name in sent)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
async def test_a_name_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnexpectedResponseError):
        await unpack(arriving(tar_of({name: b"x"}), 512), tmp_path / "inside", run)
    assert files_below(tmp_path) == set()


async def test_something_else_than_an_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnexpectedResponseError):
        await unpack(arriving(b"<html>" * 200, 512), tmp_path, run)


@pytest.mark.parametrize(
    ("held", "coming"), [("adapter_config.json", "config.json"), ("config.json", "adapter_config.json")]
)
async def test_a_model_is_not_mixed_with_one_of_the_other_kind(tmp_path: Path, held: str, coming: str) -> None:
    (tmp_path / held).touch()
    with pytest.raises(FileExistsError, match=held) as caught:
        await unpack(arriving(tar_of({coming: b"{}", "model.safetensors": b"x"}), 512), tmp_path, run)
    assert caught.value.filename == str(tmp_path)
    assert files_below(tmp_path) == {held}
    assert len(await unpack(arriving(tar_of({held: b"{}"}), 512), tmp_path, run)) == 1


SMALL = {"config.json": b"new", "tokenizer.json": b"new"}
SHARDED = {
    "config.json": b"new",
    "model.safetensors.index.json": b"new",
    "model-00001-of-00002.safetensors": b"new",
    "model-00002-of-00002.safetensors": b"new",
}


@pytest.mark.parametrize(
    ("coming", "stray"),
    [
        (SHARDED, "model.safetensors"),
        (SHARDED, "model-00002-of-00003.safetensors"),
        (SMALL | {"model.safetensors": b"new"}, "model.safetensors.index.json"),
        (SMALL | {"model.safetensors": b"new"}, "chat_template.jinja"),
        (SMALL | {"model.safetensors": b"new"}, "generation_config.json"),
        (SMALL | {"model.safetensors": b"new"}, "special_tokens_map.json"),
        (SMALL, "added_tokens.json"),
    ],
)
async def test_what_would_be_loaded_with_a_model_is_refused_before_anything_changes(
    tmp_path: Path, coming: dict[str, bytes], stray: str
) -> None:
    for name in ("config.json", "README.md", stray):
        (tmp_path / name).write_bytes(b"old")
    with pytest.raises(FileExistsError, match=f"an empty folder: {stray}, ") as caught:
        await unpack(arriving(tar_of(coming), 512), tmp_path, run)
    assert caught.value.filename == str(tmp_path)
    assert files_below(tmp_path) == {"config.json", "README.md", stray}
    assert {(tmp_path / name).read_bytes() for name in files_below(tmp_path)} == {b"old"}


@pytest.mark.parametrize("arrived", [700, 1_800, 3_000, 10_000])
async def test_the_same_model_may_come_again_also_after_it_broke_off(tmp_path: Path, arrived: int) -> None:
    archive = tar_of(SHARDED)
    with contextlib.suppress(APIConnectionError):
        await unpack(arriving(archive[:arrived], 512), tmp_path, run)
    (tmp_path / "notes.txt").touch()
    for _ in range(2):
        assert len(await unpack(arriving(archive, 512), tmp_path, run)) == len(SHARDED)
    assert files_below(tmp_path) == {*SHARDED, "notes.txt"}


async def test_an_archive_of_nothing_writes_nothing(tmp_path: Path) -> None:
    assert await unpack(arriving(tar_of({}), 512), tmp_path / "new", run) == []
    assert files_below(tmp_path) == set()


class HeaderOnly(io.BytesIO):
    """Takes one write."""

    def write(self, content: Any, /) -> int:
        if self.getbuffer():
            raise BlockingIOError
        return super().write(content)


def test_a_file_may_be_larger_than_8_gib(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 2**33 + 1)
    target = HeaderOnly()
    with pytest.raises(BlockingIOError):
        pack(tmp_path, target)
    assert tarfile.TarInfo.frombuf(target.getvalue()[:512], "utf-8", "strict").size == 2**33 + 1
