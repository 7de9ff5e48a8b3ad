"""What a process that was killed in an import leaves behind is gone once the next import has ended."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.registry.test_base_models import prepare
from tunesmith_server.registry.base_model_cache import BaseModelCache, _exclusive
from tunesmith_server.registry.catalogue import CatalogueEntry

IMPORT_AND_DIE = """
import asyncio, os, shutil, signal, sys
from pathlib import Path
from tunesmith_server.registry.base_model_cache import BaseModelCache
from tunesmith_server.registry.catalogue import CatalogueEntry
moment, cache, source = sys.argv[1:]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
async def fetch(entry, folder):
    (folder / "model.safetensors").write_bytes(b"half of it")
    die()
if moment == "copying":
    shutil.copyfile = die
if moment == "removing what is damaged":
    shutil.rmtree = die
entry = CatalogueEntry(id="toy", source=source)
asyncio.run(BaseModelCache(Path(cache), Path(sys.executable), fetch).obtain(entry, print))
"""


class Imports:
    """A cache, and a prepared model that lies in a folder or is fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cache"
        self.prepared = prepare(folder / "prepared", "toy")
        self._cache = BaseModelCache(self.folder, Path("no-trainer"), self._fetch)

    async def obtain(self, source: str) -> Path:
        """The folder of the model that the cache has from there."""
        found = await self._cache.obtain(CatalogueEntry(id="toy", source=source), lambda line: None)
        return found.folder

    async def die(self, moment: str, source: str) -> None:
        """Has a process killed at this moment of the import."""
        command = [sys.executable, "-c", IMPORT_AND_DIE, moment, str(self.folder), source]
        died = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert died.returncode == -signal.SIGKILL, died.stderr

    def unfinished(self) -> list[Path]:
        """Folders that belong to imports under way, or to nobody."""
        return [*(self.folder / "downloads").glob("*"), *(self.folder / "base_models").glob(".*")]

    async def _fetch(self, entry: CatalogueEntry, folder: Path) -> None:
        await asyncio.to_thread(shutil.copytree, self.prepared, folder, dirs_exist_ok=True)


@pytest.fixture
def imports(tmp_path: Path) -> Imports:
    return Imports(tmp_path)


@pytest.mark.parametrize("moment", ["downloading", "copying", "removing what is damaged"])
async def test_the_next_import_removes_what_a_killed_one_left(imports: Imports, moment: str) -> None:
    source = "s3://bucket/toy" if moment == "downloading" else str(imports.prepared)
    if moment == "removing what is damaged":
        (await imports.obtain(source) / "config.json").write_bytes(b"")
    await imports.die(moment, source)
    assert len(imports.unfinished()) == 1

    folder = await imports.obtain(source)

    assert imports.unfinished() == []
    assert (folder / "config.json").read_bytes() == (imports.prepared / "config.json").read_bytes()


async def test_what_was_left_of_another_source_goes_too_unless_it_is_being_imported(imports: Imports) -> None:
    await imports.die("downloading", "s3://bucket/old")
    [left] = imports.unfinished()
    [lock] = (imports.folder / "base_models" / "index").glob("*.lock")

    async with _exclusive(lock):
        await imports.obtain("s3://bucket/toy")
        assert imports.unfinished() == [left]
    await imports.obtain("s3://bucket/new")

    assert imports.unfinished() == []


async def test_what_bears_no_locks_name_is_left_alone(imports: Imports) -> None:
    stranger = imports.folder / "downloads" / "kept"
    stranger.mkdir(parents=True)
    await imports.obtain("s3://bucket/toy")
    assert imports.unfinished() == [stranger]
