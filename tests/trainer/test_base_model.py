"""Base models that could run code, or that this trainer would train wrongly, are refused."""

import json
import shutil
from pathlib import Path

import pytest

from tunesmith_trainer.base_model import read_facts, refuse_unsafe
from tunesmith_trainer.errors import UnsupportedModel


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "model"))


def change(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_facts_of_a_good_model(folder: Path) -> None:
    change(folder, "generation_config.json", eos_token_id=[2, 0])
    facts = read_facts(folder, eos_token_id=2)

    assert (facts.model_type, facts.hidden_size, facts.max_context_length) == ("llama", 64, 512)
    assert facts.stop_ids == (0, 2)


def test_a_sliding_window_limits_the_context(folder: Path) -> None:
    change(folder, "config.json", model_type="mistral", sliding_window=100)
    assert read_facts(folder, 2).max_context_length == 100
    change(folder, "config.json", use_sliding_window=False)
    assert read_facts(folder, 2).max_context_length == 512


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    change(folder, "config.json", model_type="mamba")
    with pytest.raises(UnsupportedModel, match="mamba"):
        read_facts(folder, 2)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_x.py", "weights.pkl", "model.PT"])
def test_files_that_can_run_code_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(UnsupportedModel, match="can run code"):
        refuse_unsafe(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(folder: Path, file: str) -> None:
    change(folder, file, auto_map={"AutoModel": "x--y.Z"})
    with pytest.raises(UnsupportedModel, match="auto_map"):
        refuse_unsafe(folder)


def test_links_out_of_the_folder_are_refused(folder: Path) -> None:
    (folder / "extra.json").symlink_to("/etc/hostname")
    with pytest.raises(UnsupportedModel, match="link"):
        refuse_unsafe(folder)
