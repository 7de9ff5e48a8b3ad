"""Base models go from the catalogue to ready once per machine, and say why when they do not."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.artifacts import BASE_SHAPES, safetensors_bytes
from tests.support.core import open_core
from tests.support.fake_importer import write_fake_importer
from tests.support.s3_server import BUCKET
from tunesmith_server.core import Core
from tunesmith_server.db.tables import BaseModelRow
from tunesmith_server.errors import StorageFullError
from tunesmith_server.registry import repository
from tunesmith_server.registry.base_models import BaseModelImporter
from tunesmith_server.registry.manifest import MANIFEST_NAME, ManifestFile, base_manifest, revision_id
from tunesmith_server.registry.promotion import base_shapes
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.storage.open import open_store


class Machine:
    """One cache and one catalogue for any number of homes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.cache.mkdir()
        self.said: list[str] = []
        self._python = write_fake_importer(folder, safetensors_bytes(BASE_SHAPES))

    def catalogue(self, **sources: str) -> None:
        entries = [{"id": name, "source": source} for name, source in sources.items()]
        (self.folder / "base_models.yaml").write_text(yaml.safe_dump(entries))

    @asynccontextmanager
    async def home(self, name: str = "home", **settings: Any) -> AsyncIterator[Core]:
        settings |= {"cache_dir": self.cache, "trainer_python": self._python}
        async with open_core(self.folder / name, base_models=self.folder / "base_models.yaml", **settings) as core:
            yield core

    async def import_all(self, core: Core) -> dict[str, BaseModelRow]:
        importer = BaseModelImporter(core, RegistryService(core).changes, self.said.append)
        await importer.sync_catalogue()
        await importer.import_all()
        async with core.database.read() as session:
            return {row.id: row for row in await repository.list_base_models(session)}

    @property
    def imports(self) -> list[str]:
        log = self.cache / "imports.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("TUNESMITH_SECRET_KEY", "must not reach the importer")
    made = Machine(tmp_path)
    made.catalogue(toy="toy:fine")
    return made


async def test_control_planes_that_start_together_write_the_catalogue_once(
    machine: Machine, cluster_settings: dict[str, Any]
) -> None:
    async with machine.home(**cluster_settings) as core:
        importer = BaseModelImporter(core, RegistryService(core).changes)
        await asyncio.gather(*(importer.sync_catalogue() for _ in range(5)))
        async with core.database.read() as session:
            assert [row.id for row in await repository.list_base_models(session)] == ["toy"]


async def test_a_model_is_imported_and_published(machine: Machine, cluster_settings: dict[str, Any]) -> None:
    async with machine.home(**cluster_settings) as core:
        row = (await machine.import_all(core))["toy"]
        files = await RegistryService(core).base_model_files("toy")

        assert (row.state, row.context_length, row.error) == (repository.READY, 64, None)
        assert [file.path for file in files] == ["config.json", "model.safetensors"]
        assert await base_shapes(core.store, row.revision or "") == BASE_SHAPES
    assert machine.said[1:] == ["reading toy:fine", "base model toy is ready"]


async def test_a_fresh_home_takes_it_from_the_cache(machine: Machine) -> None:
    async with machine.home("one") as core:
        first = await machine.import_all(core)
    async with machine.home("two") as core:
        second = await machine.import_all(core)

    assert machine.imports == ["toy:fine"]
    assert second["toy"].revision == first["toy"].revision


async def test_homes_that_start_together_import_once(machine: Machine) -> None:
    async with machine.home("one") as one, machine.home("two") as two:
        rows = await asyncio.gather(machine.import_all(one), machine.import_all(two))

    assert machine.imports == ["toy:fine"]
    assert [row["toy"].state for row in rows] == [repository.READY] * 2


async def test_a_restart_has_nothing_to_do(machine: Machine) -> None:
    async with machine.home() as core:
        await machine.import_all(core)
        machine.said.clear()
        rows = await machine.import_all(core)

    assert machine.said == []
    assert rows["toy"].state == repository.READY


async def test_a_changed_source_is_a_new_import(machine: Machine) -> None:
    async with machine.home() as core:
        before = await machine.import_all(core)
        machine.catalogue(toy="toy:other")
        after = await machine.import_all(core)

    assert machine.imports == ["toy:fine", "toy:other"]
    assert before["toy"].revision != after["toy"].revision


async def test_a_folder_with_other_files_is_a_new_import(machine: Machine) -> None:
    source = machine.folder / "model"
    source.mkdir()
    machine.catalogue(toy=str(source))
    revisions = []
    for number in range(2):
        (source / "vocab.json").write_text("{}" * (number + 1))
        async with machine.home(f"home{number}") as core:
            revisions.append((await machine.import_all(core))["toy"].revision)

    assert machine.imports == [str(source)] * 2
    assert revisions[0] != revisions[1]


@pytest.mark.parametrize("damage", ["gone", "short", "changed", "manifest"])
async def test_a_damaged_cache_is_imported_again(machine: Machine, damage: str) -> None:
    async with machine.home("one") as core:
        revision = (await machine.import_all(core))["toy"].revision
    folder = machine.cache / "base_models" / str(revision)
    if damage == "gone":
        (folder / "model.safetensors").unlink()
    elif damage == "short":
        (folder / "model.safetensors").write_bytes(b"")
    elif damage == "changed":
        (folder / "model.safetensors").write_bytes(bytes(len(safetensors_bytes(BASE_SHAPES))))
    else:
        (folder / "manifest.json").write_bytes(b"{}")

    async with machine.home("two") as core:
        rows = await machine.import_all(core)
        assert await base_shapes(core.store, str(revision)) == BASE_SHAPES, "the damage was published"

    assert machine.imports == ["toy:fine"] * 2
    assert rows["toy"].state == repository.READY


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("toy:broken", "toy:broken could not be imported: The source is broken."),
        ("toy:silent", "did not say what it imported"),
        ("toy:damaged", "does not have the hash"),
    ],
)
async def test_a_failure_is_told_and_others_go_on(machine: Machine, source: str, sentence: str) -> None:
    machine.catalogue(bad=source, toy="toy:fine")
    async with machine.home() as core:
        rows = await machine.import_all(core)

        assert rows["bad"].state == repository.FAILED
        assert sentence in (rows["bad"].error or "")
        assert rows["toy"].state == repository.READY
        machine.catalogue(bad="toy:mended", toy="toy:fine")
        rows = await machine.import_all(core)
    assert (rows["bad"].state, rows["bad"].error) == (repository.READY, None)


async def test_a_full_storage_is_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.catalogue(toy="toy:fine", other="toy:other")
    pauses: list[float] = []
    async with machine.home() as core:

        async def full(key: str, source: Path) -> None:
            raise StorageFullError("storage_full", f"There is no room for {key}.")

        async def states() -> list[str]:
            async with core.database.read() as session:
                return [row.state for row in await repository.list_base_models(session)]

        async def wait(seconds: float) -> None:
            assert await states() == [repository.IMPORTING] * 2
            pauses.append(seconds)
            if len(pauses) == 2:
                monkeypatch.undo()

        importer = BaseModelImporter(core, RegistryService(core).changes, machine.said.append, wait)
        await importer.sync_catalogue()
        monkeypatch.setattr(core.store, "put_file", full)
        await importer.import_all()
        assert await states() == [repository.READY] * 2
    assert pauses == [5, 10]
    assert machine.imports == ["toy:fine", "toy:other"], "what the cache has is not imported again"


async def test_users_hear_of_an_architecture_and_of_no_other_reason(machine: Machine) -> None:
    machine.catalogue(mixture="toy:mixture", broken="toy:broken")
    async with machine.home() as core:
        rows = await machine.import_all(core)
        assert rows["mixture"].error == "toy:mixture could not be imported: It is a mixture of experts."
        assert {name: row.unsupported for name, row in rows.items()} == {
            "mixture": "It is a mixture of experts.",
            "broken": None,
        }
        machine.catalogue(mixture="toy:mended")
        rows = await machine.import_all(core)
    assert (rows["mixture"].state, rows["mixture"].unsupported) == (repository.READY, None)


async def test_a_stopped_import_leaves_no_process_and_is_tried_again(machine: Machine) -> None:
    machine.catalogue(toy="toy:slow")
    async with machine.home() as core:
        task = asyncio.ensure_future(machine.import_all(core))
        async with asyncio.timeout(30):
            while "reading toy:slow" not in machine.said:  # noqa: ASYNC110 (said by a plain callback)
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        machine.catalogue(toy="toy:fine")
        rows = await machine.import_all(core)
    assert rows["toy"].state == repository.READY


async def test_a_bucket_is_downloaded_first(machine: Machine, cluster_settings: dict[str, Any]) -> None:
    machine.catalogue(toy=f"s3://{BUCKET}/models/toy")
    async with machine.home() as core:
        bucket = open_store(core.settings.model_copy(update={"storage_url": f"s3://{BUCKET}/models/toy"}), core.signer)
        await bucket.put_bytes("vocab.json", b"{}")
        row = (await machine.import_all(core))["toy"]

    assert row.state == repository.READY, row.error
    assert "vocab.json" in [file["path"] for file in row.files or ()]
    assert list((machine.cache / "downloads").iterdir()) == []


def prepare(folder: Path, model_id: str) -> Path:
    """A folder as `import-base --folder` leaves it."""
    contents = {"config.json": b'{"max_position_embeddings": 64}', "model.safetensors": safetensors_bytes(BASE_SHAPES)}
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    files = [ManifestFile(name, len(each), hashlib.sha256(each).hexdigest()) for name, each in contents.items()]
    (folder / MANIFEST_NAME).write_bytes(base_manifest(model_id, files))
    return folder


async def test_what_was_imported_elsewhere_is_taken_as_it_is(
    machine: Machine, cluster_settings: dict[str, Any]
) -> None:
    folder = prepare(machine.folder / "prepared", "toy")
    machine.catalogue(toy=str(folder))
    async with machine.home() as core:
        row = (await machine.import_all(core))["toy"]
        assert await base_shapes(core.store, row.revision or "") == BASE_SHAPES
        bucket = open_store(core.settings.model_copy(update={"storage_url": f"s3://{BUCKET}/prepared"}), core.signer)
        for path in folder.iterdir():
            await bucket.put_file(path.name, path)
    machine.catalogue(toy=f"s3://{BUCKET}/prepared")
    async with machine.home("other") as core:
        from_bucket = (await machine.import_all(core))["toy"]

    assert row.state == repository.READY
    assert from_bucket.revision == row.revision == revision_id((folder / MANIFEST_NAME).read_bytes())
    assert machine.imports == [], "nothing ran the importer"


@pytest.mark.parametrize(
    ("damage", "sentence"), [("other id", "was prepared as 'toy'"), ("changed", "does not have the hash")]
)
async def test_a_prepared_folder_that_is_not_what_it_says_is_refused(
    machine: Machine, damage: str, sentence: str
) -> None:
    folder = prepare(machine.folder / "prepared", "toy")
    if damage == "changed":
        (folder / "config.json").write_bytes(b'{"max_position_embeddings": 65}')
    name = "another" if damage == "other id" else "toy"
    machine.catalogue(**{name: str(folder)})
    async with machine.home() as core:
        row = (await machine.import_all(core))[name]

    assert row.state == repository.FAILED
    assert sentence in (row.error or "")


async def test_an_empty_bucket_is_told(machine: Machine, cluster_settings: dict[str, Any]) -> None:
    machine.catalogue(toy=f"s3://{BUCKET}/models/none")
    async with machine.home() as core:
        row = (await machine.import_all(core))["toy"]

    assert (row.state, row.error) == (repository.FAILED, f"There are no files under s3://{BUCKET}/models/none.")
