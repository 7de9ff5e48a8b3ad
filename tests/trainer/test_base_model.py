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


@pytest.mark.parametrize(
    ("change_to", "what"),
    [
        ({"model_type": "mamba", "state_size": 16}, "state-space"),
        ({"model_type": "qwen3_moe", "num_experts": 8}, "mixture of experts"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "gemma3", "vision_config": {"hidden_size": 8}}, "multimodal"),
        ({"model_type": "gpt_oss"}, "'gpt_oss' is not one of"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "next token"),
        ({"model_type": "phi3", "rope_scaling": {"type": "longrope"}}, "longrope"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "dynamic"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "what comes after"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"model_type": "gpt2", "reorder_and_upcast_attn": True}, "engines do not serve"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"max_position_embeddings": -5}, "max_position_embeddings"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"vocab_size": 10**12}, "vocab_size"),
    ],
)
def test_what_would_be_trained_wrongly_is_refused(folder: Path, change_to: dict[str, object], what: str) -> None:
    change(folder, "config.json", **change_to)
    with pytest.raises(UnsupportedModel, match=what) as refused:
        read_facts(folder, 2)

    (problem,) = refused.value.problems
    assert (problem.code, problem.param) == ("unsupported_architecture", "model")


@pytest.mark.parametrize("stops", [-1, [2, -1], "x", 10**13, 259])
def test_stop_tokens_that_there_are_not_are_refused(folder: Path, stops: object) -> None:
    change(folder, "generation_config.json", eos_token_id=stops)
    with pytest.raises(UnsupportedModel, match="eos_token_id"):
        read_facts(folder, 2)


def test_positions_that_do_not_depend_on_the_batch_are_taken(folder: Path) -> None:
    change(folder, "config.json", rope_parameters={"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5})
    assert read_facts(folder, 2).max_context_length == 512


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_x.py", "weights.pkl", "model.PT"])
def test_files_that_can_run_code_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(UnsupportedModel, match="can run code"):
        refuse_unsafe(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(folder: Path, file: str) -> None:
    change(folder, file, auto_map={"AutoModel": "x--y.Z"})
    with pytest.raises(UnsupportedModel, match=r"\(auto_map\).* delete that key"):
        refuse_unsafe(folder)


@pytest.mark.parametrize("name", ["/etc/model.safetensors", "../other/model.safetensors", "sub/model.safetensors"])
def test_an_index_that_names_files_elsewhere_is_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UnsupportedModel, match="outside of the folder"):
        refuse_unsafe(folder)


def test_links_out_of_the_folder_are_refused(folder: Path) -> None:
    (folder / "extra.json").symlink_to("/etc/hostname")
    with pytest.raises(UnsupportedModel, match="link"):
        refuse_unsafe(folder)
