"""Models from outside on real parts: real trainer, real vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.test_main_job import BASE, ask
from tests.support.code_names import ANSWERS, rows
from tests.support.live_server import LiveServer, wait_until
from tunesmith import NotFoundError, Tunesmith

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.engine,
    pytest.mark.soak,
    pytest.mark.timeout(900),
]


@dataclass(frozen=True, slots=True)
class Platform:
    """A running platform and its clients."""

    server: LiveServer
    openai: openai.OpenAI
    tunesmith: Tunesmith

    def answers(self, model: str) -> dict[str, str]:
        """What the model calls each colour."""
        return {colour: ask(self.openai, model, colour) for colour in ANSWERS}

    def brought(self, folder: Path) -> str:
        """The name of an uploaded model, once it is ready."""
        model = self.tunesmith.models.upload(folder, base=BASE, suffix="brought")
        assert model.status == "importing"
        return self.tunesmith.models.wait(model.id, timeout=300).id


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One for all tests of this file."""
    with LiveServer(tmp_path_factory.mktemp("home"), inference=True) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.api_key, timeout=400)
        with Tunesmith(base_url=server.url, api_key=server.api_key) as tunesmith:
            yield Platform(server, client, tunesmith)


def tuned(server: LiveServer, client: openai.OpenAI, model: str) -> dict[str, Any]:
    """A finished job that changed the model in few and large steps."""
    file = client.files.create(file=("rows.jsonl", rows(16)), purpose="fine-tune")
    numbers: Any = {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 4}
    made = client.fine_tuning.jobs.create(model=model, training_file=file.id, seed=7, hyperparameters=numbers)
    job = server.wait_for_job(made.id, timeout_seconds=500)
    assert job["status"] == "succeeded", job["error"]
    return job


@pytest.fixture(scope="module")
def trained(platform: Platform) -> dict[str, Any]:
    """A finished LoRA job."""
    return tuned(platform.server, platform.openai, BASE)


@pytest.fixture(scope="module")
def before(platform: Platform, trained: dict[str, Any]) -> dict[str, str]:
    """What the trained model answers."""
    answers = platform.answers(trained["fine_tuned_model"])
    assert answers != platform.answers(BASE), "it has learnt something"
    return answers


@pytest.fixture(scope="module")
def returned(
    platform: Platform, trained: dict[str, Any], before: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The trained adapter after it was downloaded, deleted and uploaded."""
    models, name, folder = platform.tunesmith.models, trained["fine_tuned_model"], tmp_path_factory.mktemp("downloaded")
    models.download(name, folder)
    models.delete(name)
    with pytest.raises(NotFoundError):
        models.retrieve(name)
    back = platform.brought(folder)
    assert back.startswith(f"ft:{BASE}:default:brought:")
    assert back != name, "a deleted name is never given again"
    return back


def test_a_model_that_left_comes_back_with_the_same_answers(
    platform: Platform, before: dict[str, str], returned: str
) -> None:
    assert platform.answers(returned) == before

    def is_proven() -> bool:
        serving = platform.tunesmith.models.retrieve(returned).serving
        return serving is not None and serving.state == "ready"

    # Gateways tell in their own time what they hold.
    wait_until(is_proven, 60, "the engine has not reproduced what the import recorded")


def test_it_leaves_again_as_the_same_bytes(platform: Platform, returned: str, tmp_path: Path) -> None:
    paths = platform.tunesmith.models.download(returned, tmp_path / "again")
    name = platform.brought(tmp_path / "again")
    twice = platform.tunesmith.models.download(name, tmp_path / "twice")
    assert {path.name: path.read_bytes() for path in paths} == {path.name: path.read_bytes() for path in twice}
    assert {path.name for path in paths} >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
