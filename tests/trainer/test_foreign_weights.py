"""Whole weights from outside are the base model's, computed as it is; `test_import_run.py` has what else is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support.foreign_models import files_of
from tests.support.training_server import TrainingServer
from tests.trainer.conftest import RunAttempt
from tests.trainer.test_import_run import given, imported
from tunesmith_trainer.base_shapes import build_empty
from tunesmith_trainer.errors import BadData
from tunesmith_trainer.foreign_weights import require_fitting_weights, require_same_architecture


def test_weights_that_are_in_two_files_are_refused(base: Path, tmp_path: Path) -> None:
    shutil.copyfile(base / "model.safetensors", tmp_path / "model-00001-of-00002.safetensors")
    require_fitting_weights(tmp_path, build_empty(base))
    shutil.copyfile(base / "model.safetensors", tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(BadData, match="more than one of the files") as refused:
        require_fitting_weights(tmp_path, build_empty(base))
    assert refused.value.problems[0].code == "weights_repeated"


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 259,
}
LLAMA = {"model_type": "llama", "tie_word_embeddings": True, "rms_norm_eps": 9.999999747378752e-06} | SIZES
QWEN = {"model_type": "qwen2", "rope_theta": 1e6, "sliding_window": 128} | SIZES
PHI = {"model_type": "phi3", "original_max_position_embeddings": 512, "rope_theta": 1e4, "pad_token_id": 0} | SIZES
GEMMA = {"model_type": "gemma2", "head_dim": 16} | SIZES
LOCAL = {"model_type": "gemma3_text", "head_dim": 16, "rope_theta": 1000000, "rope_local_base_freq": 10000} | SIZES
LINEAR = LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 5e5}


def compare(base: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    """Holds the configuration with changes against the base's; a None takes the key out."""
    for name, config in (("base", base), ("sent", base | changes)):
        (tmp_path / name).mkdir()
        told = {key: value for key, value in config.items() if value is not None}
        (tmp_path / name / "config.json").write_text(json.dumps(told))
    require_same_architecture(tmp_path / "sent", tmp_path / "base")


@pytest.mark.parametrize(
    ("base_config", "changes"),
    [
        (LLAMA, {"rms_norm_eps": 1e-5}),
        (LLAMA, {"dtype": "float32", "_name_or_path": "a/b", "transformers_version": "4.42.3", "use_cache": False}),
        (LLAMA, {"torch_dtype": "float32", "architectures": ["LlamaForCausalLM"]}),
        (LLAMA, {"initializer_range": 0.04, "attention_dropout": 0.1, "unk_token_id": 0, "pad_token_id": 2}),
        (LLAMA, {"is_llama_config": True, "rope_interleaved": False, "unsloth_version": "2026.1"}),
        (LLAMA, {"id2label": {"0": "x"}, "output_hidden_states": True, "_model_name_or_path": "Mix"}),
        (LLAMA, {"head_dim": 16, "attention_bias": False, "rope_scaling": {}, "rope_theta": 10000}),
        (LLAMA, {"rope_parameters": {"rope_theta": 10000, "rope_type": "default", "partial_rotary_factor": 1.0}}),
        (LINEAR, {"rope_scaling": {"type": "linear", "factor": 2}}),
        (
            LINEAR,
            {
                "rope_scaling": None,
                "rope_theta": None,
                "rope_parameters": {"rope_type": "linear", "rope_theta": 500000, "factor": 2.0},
            },
        ),
        (QWEN, {"use_sliding_window": False, "max_window_layers": 3}),
        (PHI, {"partial_rotary_factor": 1.0, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "rope_scaling": {}}),
        (
            LOCAL,
            {
                "rope_theta": None,
                "rope_local_base_freq": None,
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                },
            },
        ),
        ({"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4}, {"attn_pdrop": 0.0, "n_ctx": 1024}),
    ],
)
def test_what_computes_nothing_may_differ(base_config: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    compare(base_config, changes, tmp_path)


@pytest.mark.parametrize(
    ("base_config", "changes", "named"),
    [
        (LLAMA, {"rms_norm_eps": 1.01e-5}, "rms_norm_eps"),
        (LLAMA, {"rope_theta": 1e5}, "rope_parameters"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "rope_parameters"),
        (LINEAR, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "rope_parameters"),
        (LINEAR, {"rope_scaling": {}}, "rope_parameters"),
        (LLAMA, {"num_attention_heads": 2, "head_dim": 32}, "head_dim, num_attention_heads"),
        (LLAMA, {"num_key_value_heads": 4}, "num_key_value_heads"),
        (LLAMA, {"num_hidden_layers": 2}, "num_hidden_layers"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act"),
        (LLAMA, {"tie_word_embeddings": False}, "tie_word_embeddings"),
        (LLAMA, {"attention_bias": True}, "attention_bias"),
        (LLAMA, {"max_position_embeddings": 1024}, "max_position_embeddings"),
        (LLAMA, {"model_type": "mistral"}, "model_type"),
        (QWEN, {"use_sliding_window": True, "max_window_layers": 0}, "layer_types"),
        (PHI, {"sliding_window": 64}, "sliding_window"),
        (GEMMA, {"final_logit_softcapping": 20.0}, "final_logit_softcapping"),
        (GEMMA, {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        (GEMMA, {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
        (LOCAL, {"rope_local_base_freq": 20000}, "rope_parameters"),
        ({"model_type": "gpt2", "n_embd": 64, "n_head": 4}, {"activation_function": "relu"}, "activation_function"),
    ],
)
def test_what_computes_otherwise_is_refused(
    base_config: dict[str, Any], changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(BadData, match=f"has another .*{named}.* than the base") as refused:
        compare(base_config, changes, tmp_path)
    assert refused.value.problems[0].code == "config_differs"


@pytest.mark.parametrize("eps", [10**400, "1e-5", [1e-5]])
def test_numbers_that_are_none_are_refused(eps: object, tmp_path: Path) -> None:
    with pytest.raises(BadData) as refused:
        compare(LLAMA, {"rms_norm_eps": eps}, tmp_path)
    assert refused.value.problems[0].code == "config_invalid"


@pytest.mark.parametrize("metadata", [{"format": "mlx"}, {"format": "pt", "mergekit_version": "0.1"}])
def test_what_tools_write_into_a_header_changes_nothing(
    server: TrainingServer, run_attempt: RunAttempt, base: Path, tmp_path: Path, metadata: dict[str, str]
) -> None:
    tensors = {name: tensor * 1.01 for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata=metadata)
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    given(server, files_of(tmp_path))
    made = imported(server, run_attempt) / "model.safetensors"
    with safe_open(made, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(made).items())
