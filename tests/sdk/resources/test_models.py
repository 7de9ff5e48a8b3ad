"""`client.models`."""

from __future__ import annotations

import tarfile
from collections import deque
from pathlib import Path

import pytest

from tests.support.archives import tar_of
from tests.support.fake_api import FakeApi
from tunesmith import APIConnectionError, AsyncTunesmith, ModelFailedError, NotFoundError, Tunesmith, WaitTimeoutError

BASE = "smollm2-135m-instruct"
TUNED = "ft:smollm2-135m-instruct:default:tickets:abcd1234"


class ChangingArchives(dict[str, bytes]):
    """Hold another model at every look."""

    def __getitem__(self, name: str) -> bytes:
        self.looks = getattr(self, "looks", 0) + 1
        return tar_of({"model.safetensors": b"model %d" % self.looks})


class TestModels:
    def test_list_retrieve_delete(self, api: FakeApi, client: Tunesmith) -> None:
        api.models[TUNED] = {"id": TUNED, "object": "model", "created": 1, "owned_by": "default"}
        assert [model.id for model in client.models.list()] == ["smollm2-135m-instruct", TUNED]
        assert client.models.retrieve(TUNED).owned_by == "default"
        assert client.models.delete(TUNED).deleted
        with pytest.raises(NotFoundError) as caught:
            client.models.retrieve(TUNED)
        assert caught.value.code == "model_not_found"

    def test_download(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        api.archives[TUNED] = tar_of({"config.json": b"{}", "model.safetensors": b"weights"})
        written = client.models.download(TUNED, tmp_path / "model", merged=True)
        assert api.received[0].query == {"merged": "true"}
        assert [(path.name, path.read_bytes()) for path in written] == [
            ("config.json", b"{}"),
            ("model.safetensors", b"weights"),
        ]
        with pytest.raises(NotFoundError):
            client.models.download("ft:unknown", tmp_path)

    def test_a_download_outlasts_its_connections(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        api.archives[TUNED] = tar_of({"config.json": b"{}", "model.safetensors": b"weights" * 1000})
        api.archive_cuts += [700, 2_000]
        written = client.models.download(TUNED, tmp_path / "model")
        assert [path.read_bytes() for path in written] == [b"{}", b"weights" * 1000]
        assert [request.headers.get("range") for request in api.received] == [None, "bytes=700-", "bytes=2700-"]

    def test_a_download_ends_that_brings_nothing_more(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        api.archives[TUNED] = tar_of({"model.safetensors": b"weights"})
        api.archive_cuts += [700, 0, 700]
        with pytest.raises(APIConnectionError) as caught:
            client.models.download(TUNED, tmp_path / "model")
        assert caught.value.code == "connection_broken"
        assert len(api.received) == 2

    async def test_a_download_does_not_go_on_with_another_model(
        self, api: FakeApi, async_client: AsyncTunesmith, tmp_path: Path
    ) -> None:
        api.archives = ChangingArchives({TUNED: b""})
        api.archive_cuts.append(tarfile.BLOCKSIZE + 3)
        with pytest.raises(APIConnectionError):
            await async_client.models.download(TUNED, tmp_path / "model")
        assert not list((tmp_path / "model").glob("*.safetensors"))

    async def test_async_twin(self, api: FakeApi, async_client: AsyncTunesmith) -> None:
        api.models["org/model"] = {"id": "org/model", "object": "model", "created": 1, "owned_by": "default"}
        assert len([model async for model in async_client.models.list()]) == 2
        assert (await async_client.models.delete("org/model")).id == "org/model"


class TestUpload:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """What PEFT's trainers leave."""
        made = tmp_path / "adapter"
        made.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md", "optimizer.pt"):
            (made / name).write_bytes(name.encode())
        (made / "checkpoint-5").mkdir()
        return made

    def test_what_is_served_is_sent(self, api: FakeApi, client: Tunesmith, folder: Path, tmp_path: Path) -> None:
        heard: list[tuple[int, int]] = []
        model = client.models.upload(
            folder, base=BASE, suffix="mine", progress=lambda sent, size: heard.append((sent, size))
        )
        assert (model.status, model.id.rpartition(":")[0]) == ("importing", f"ft:{BASE}:default:mine")
        file, content = next(iter(api.files.values()))
        assert (file["filename"], file["purpose"], heard) == ("adapter.tar", "model", [(len(content), len(content))])
        assert b"86400" in api.received[0].body, "the archive is not kept for ever"
        written = client.models.download(model.id, tmp_path / "again")
        assert {path.name: path.read_bytes() for path in written} == {
            name: name.encode() for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
        }

    def test_waiting_ends_with_the_import(self, api: FakeApi, client: Tunesmith, folder: Path) -> None:
        model = client.models.upload(folder, base=BASE)
        api.futures[model.id] = deque([lambda: None, lambda: api.models[model.id].update(status="ready")])
        assert client.models.wait(model.id, poll_interval=0).status == "ready"

    def test_a_failed_import_raises_its_reason(self, api: FakeApi, client: Tunesmith, folder: Path) -> None:
        model = client.models.upload(folder, base=BASE)
        error = {"code": "tokenizer_differs", "message": "It is another one.", "param": "file"}
        api.models[model.id] |= {"status": "failed", "error": error}
        with pytest.raises(ModelFailedError, match="It is another one") as caught:
            client.models.wait(model.id)
        assert (caught.value.code, caught.value.param) == ("tokenizer_differs", "file")
        assert caught.value.model.id == model.id

    def test_waiting_ends(self, client: Tunesmith, folder: Path) -> None:
        model = client.models.upload(folder, base=BASE)
        with pytest.raises(WaitTimeoutError):
            client.models.wait(model.id, timeout=0)

    def test_a_folder_without_a_model_is_said_so(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
            client.models.upload(tmp_path, base=BASE)
        assert api.received == []

    async def test_async_twin(self, async_client: AsyncTunesmith, api: FakeApi, folder: Path) -> None:
        model = await async_client.models.upload(folder, base=BASE)
        api.models[model.id]["status"] = "ready"
        assert (await async_client.models.wait(model.id)).id == model.id
