"""`client.models`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sdk.test_archives import tar_of
from tests.support.fake_api import FakeApi
from tunesmith import AsyncTunesmith, NotFoundError, Tunesmith

TUNED = "ft:smollm2-135m-instruct:default:tickets:abcd1234"


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

    async def test_async_twin(self, api: FakeApi, async_client: AsyncTunesmith) -> None:
        api.models["org/model"] = {"id": "org/model", "object": "model", "created": 1, "owned_by": "default"}
        assert len([model async for model in async_client.models.list()]) == 2
        assert (await async_client.models.delete("org/model")).id == "org/model"
