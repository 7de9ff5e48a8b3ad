"""A model from outside becomes an artifact that computes what PEFT and transformers compute of it, or is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.archives import tar_of
from tests.support.foreign_models import files_of, peft_adapter
from tests.support.training_server import TrainingServer
from tests.trainer.conftest import RunAttempt
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.golden import greedy
from tunesmith_trainer.model import load_for_generation

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning",  # PEFT's own use of transformers
    "ignore:Could not find a config file in:UserWarning",  # what PEFT would ask a hub for
)


ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "rank-stabilised on two layers": {
        "r": 5,
        "lora_alpha": 10,
        "use_rslora": True,
        "target_modules": ["q_proj", "v_proj"],
    },
    "ranks and alphas of their own": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "up_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7},
        "alpha_pattern": {"down_proj": 3, "layers.0.mlp.up_proj": 20},
    },
    "the same, rank-stabilised": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"up_proj": 3},
    },
    "layers by number": {"r": 2, "lora_alpha": 8, "target_modules": ["o_proj"], "layers_to_transform": [1]},
    "targets by expression": {"r": 2, "lora_alpha": 9, "target_modules": r".*layers\.0\.mlp\.(up|gate)_proj"},
}


def given(server: TrainingServer, files: dict[str, bytes]) -> None:
    """Lets the attempt import these files."""
    (server.root / "model.tar").write_bytes(tar_of(files))
    server.spec.kind = pb.RUN_KIND_IMPORT
    server.spec.ClearField("training_file")
    server.spec.model_archive.CopyFrom(server.remote("model.tar"))


def imported(server: TrainingServer, run_attempt: RunAttempt) -> Path:
    """The folder of the artifact that the attempt delivered."""
    assert run_attempt(server) == 0, server.failed
    assert server.imported is not None
    return server.root / "out" / server.imported.artifact.prefix


def refused(server: TrainingServer, run_attempt: RunAttempt) -> tuple[str, str]:
    """Code and field of what the attempt reported, which nobody tries again."""
    assert run_attempt(server) == 65
    assert server.failed is not None
    assert server.failed.cause == pb.FAILURE_CAUSE_USER
    return server.failed.failures[0].code, server.failed.failures[0].param


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_peft_is_recorded_as_peft_computes_it(
    server: TrainingServer, run_attempt: RunAttempt, base: Path, tmp_path: Path, name: str
) -> None:
    theirs = peft_adapter(base, tmp_path / "peft", **ADAPTERS[name])
    given(server, files_of(tmp_path / "peft"))
    folder = imported(server, run_attempt)

    untuned = load_for_generation(base, torch.device("cpu"))
    golden = json.loads((folder / "golden.json").read_text())["prompts"]
    assert len(golden) == 3
    for prompt in golden:
        for model, ids, logprobs in (
            (theirs, "token_ids", "logprobs"),
            (untuned, "base_token_ids", "base_logprobs"),
        ):
            answer = greedy(model, prompt["prompt_token_ids"], [2])
            assert answer["token_ids"] == prompt[ids]
            assert answer["logprobs"] == pytest.approx(prompt[logprobs], abs=1e-3)
    assert any(prompt["token_ids"] != prompt["base_token_ids"] for prompt in golden), "the adapter says something"


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_it_becomes_is_one_plain_adapter_of_the_same_function(
    server: TrainingServer, run_attempt: RunAttempt, base: Path, tmp_path: Path, name: str
) -> None:
    theirs = peft_adapter(base, tmp_path / "peft", **ADAPTERS[name])
    given(server, files_of(tmp_path / "peft"))
    folder = imported(server, run_attempt)

    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert "rank_pattern" not in config, "engines do not heed patterns"
    assert isinstance(config["target_modules"], list)
    assert server.imported is not None
    told = server.imported.adapter
    assert (told.lora_rank, told.lora_alpha) == (config["r"], config["lora_alpha"])
    assert (list(told.lora_targets), told.use_rslora) == (config["target_modules"], config["use_rslora"])
    ids = torch.arange(20, 60)[None]
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        ours = peft.PeftModel.from_pretrained(reference, folder).eval()(input_ids=ids).logits
        torch.testing.assert_close(ours, theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["layers by number", "ranks and alphas of their own", "the same, rank-stabilised"])
def test_a_run_goes_on_from_what_it_became(
    server: TrainingServer, run_attempt: RunAttempt, base: Path, tmp_path: Path, name: str
) -> None:
    peft_adapter(base, tmp_path / "peft", **ADAPTERS[name])
    given(server, files_of(tmp_path / "peft"))
    imported(server, run_attempt).rename(server.root / "start")
    assert server.imported is not None
    server.spec.kind = pb.RUN_KIND_TRAINING
    server.spec.training_file.CopyFrom(server.remote("train.jsonl"))
    server.spec.hyperparameters.MergeFrom(server.imported.adapter)
    parts = ("adapter_config.json", "adapter_model.safetensors")
    files = [server.remote(f"start/{part}", part) for part in parts]
    server.spec.warm_start.CopyFrom(pb.WarmStart(kind=pb.ARTIFACT_KIND_ADAPTER, files=files))

    assert run_attempt(server) == 0, server.failed
    trained = server.root / "out" / server.checkpoints[-1].artifact.prefix
    configs = [json.loads((folder / parts[0]).read_text()) for folder in (server.root / "start", trained)]
    assert configs[0] == configs[1]
    before, after = (load_file(folder / parts[1]) for folder in (server.root / "start", trained))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_plain_adapter_keeps_its_tensors_bit_by_bit(
    server: TrainingServer, run_attempt: RunAttempt, base: Path, tmp_path: Path
) -> None:
    peft_adapter(base, tmp_path / "peft", **ADAPTERS["plain"])
    given(server, files_of(tmp_path / "peft"))
    folder = imported(server, run_attempt)
    before, after = (load_file(place / "adapter_model.safetensors") for place in (tmp_path / "peft", folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_whole_weights_come_back_with_the_files_of_the_base(
    server: TrainingServer, run_attempt: RunAttempt, base: Path, tmp_path: Path, dtype: str
) -> None:
    """And in the dtype that they were sent in, which may be a finer one than the base's."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(tmp_path / "whole", max_shard_size="50KB")
    sent = files_of(tmp_path / "whole")
    assert len([name for name in sent if name.endswith(".safetensors")]) > 1, "in several files"
    given(server, sent)
    folder = imported(server, run_attempt)

    assert server.imported is not None
    assert server.imported.artifact.kind == pb.ARTIFACT_KIND_FULL
    for name in ("tokenizer.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    config = json.loads((base / "config.json").read_text())
    assert json.loads((folder / "config.json").read_text()) == config | {"dtype": dtype}
    tuned = load_for_generation(folder, torch.device("cpu"))
    wanted = load_for_generation(tmp_path / "whole", torch.device("cpu"))
    for (name, ours), (_, theirs) in zip(tuned.named_parameters(), wanted.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    for prompt in json.loads((folder / "golden.json").read_text())["prompts"]:
        assert greedy(wanted, prompt["prompt_token_ids"], [2])["token_ids"] == prompt["token_ids"]


@pytest.mark.parametrize("names", ["another model", "one of two files"])
def test_an_uploaded_index_is_not_followed(
    server: TrainingServer, run_attempt: RunAttempt, base: Path, tmp_path: Path, names: str
) -> None:
    """It could have another project's weights read, or leave weights out, which would be random numbers."""
    tensors = {name: tensor * 1.01 for name, tensor in load_file(base / "model.safetensors").items()}
    half = sorted(tensors)[::2]
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for shard, chosen in zip(shards, (half, tensors.keys() - set(half)), strict=True):
        save_file({name: tensors[name] for name in chosen}, tmp_path / shard, metadata={"format": "pt"})
    other = dict.fromkeys(tensors, str(base / "model.safetensors"))
    index = {"metadata": {}, "weight_map": other if names == "another model" else dict.fromkeys(half, shards[0])}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    given(server, files_of(tmp_path))
    made = load_file(imported(server, run_attempt) / "model.safetensors")

    assert all(torch.equal(made[name], tensor) for name, tensor in tensors.items())


def test_an_adapter_that_engines_cannot_load_becomes_whole_weights(
    server: TrainingServer, run_attempt: RunAttempt, gpt2: Path, tmp_path: Path
) -> None:
    server.spec.base_model.CopyFrom(pb.BaseModel(id="gpt2", revision=gpt2.name))
    theirs = peft_adapter(gpt2, tmp_path / "peft", r=3, lora_alpha=6, target_modules=["c_attn"], fan_in_fan_out=True)
    given(server, files_of(tmp_path / "peft"))
    folder = imported(server, run_attempt)

    assert server.imported is not None
    assert server.imported.artifact.kind == pb.ARTIFACT_KIND_FULL
    assert not server.imported.HasField("adapter")
    assert not (folder / "adapter_config.json").exists()
    for prompt in json.loads((folder / "golden.json").read_text())["prompts"]:
        assert greedy(theirs, prompt["prompt_token_ids"], [2])["token_ids"] == prompt["token_ids"]


def test_tokenizer_files_that_a_library_wrote_again_are_the_same(
    server: TrainingServer, run_attempt: RunAttempt, base: Path, tmp_path: Path
) -> None:
    peft_adapter(base, tmp_path / "peft", **ADAPTERS["plain"])
    document = json.loads((base / "tokenizer.json").read_text())
    document |= {"truncation": {"max_length": 5}, "version": "9"}
    texts = {"tokenizer.json": json.dumps(document).encode(), "chat_template.jinja": _template(base) + b"\n"}
    given(server, files_of(tmp_path / "peft") | texts)
    imported(server, run_attempt)


def _template(base: Path) -> bytes:
    return (base / "chat_template.jinja").read_bytes()


def _other_tokens(base: Path) -> dict[str, bytes]:
    document = json.loads((base / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    return {"tokenizer.json": json.dumps(document).encode()}


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        (_other_tokens, "tokenizer_differs"),
        (lambda base: {"tokenizer.json": b"[" * 100_000}, "file_invalid"),
        (lambda base: {"chat_template.jinja": _template(base) + b"!"}, "chat_template_differs"),
        # Were it run, it would never end.
        (
            lambda base: {
                "tokenizer_config.json": json.dumps(
                    {"chat_template": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"}
                ).encode()
            },
            "chat_template_differs",
        ),
    ],
)
def test_texts_that_are_not_the_base_models_are_refused(
    server: TrainingServer,
    run_attempt: RunAttempt,
    base: Path,
    tmp_path: Path,
    texts: Callable[[Path], dict[str, bytes]],
    code: str,
) -> None:
    peft_adapter(base, tmp_path / "peft", **ADAPTERS["plain"])
    given(server, files_of(tmp_path / "peft") | texts(base))
    assert refused(server, run_attempt) == (code, "file")


def _renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("self_attn", "attention"): tensor for name, tensor in tensors.items()}


def _of_the_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = "base_model.model.lm_head.lora_"
    return tensors | {f"{prefix}A.weight": torch.zeros(4, 64), f"{prefix}B.weight": torch.zeros(259, 4)}


def _wider(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros(tensor.shape[0] + (".lora_B" in name), tensor.shape[1]) for name, tensor in tensors.items()
    }


def _broken(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    next(iter(tensors.values()))[0, 0] = torch.nan
    return tensors


def _enormous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, 1e30) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_renamed, ("adapter_module_unknown", "base_model")),
        (_of_the_head, ("adapter_module_unknown", "base_model")),
        (_wider, ("adapter_shape_mismatch", "base_model")),
        (_broken, ("weights_not_finite", "file")),
        (_enormous, ("answers_not_finite", "file")),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    server: TrainingServer,
    run_attempt: RunAttempt,
    base: Path,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    reason: tuple[str, str],
) -> None:
    peft_adapter(base, tmp_path / "peft", **ADAPTERS["plain"])
    path = tmp_path / "peft" / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    given(server, files_of(tmp_path / "peft"))
    assert refused(server, run_attempt) == reason


def _without(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def _with(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: tensors | {name: tensor}


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without(NORM), ("weights_missing", "file")),
        (_without("model.embed_tokens.weight"), ("weights_missing", "file")),
        (_with("model.norm.bias", torch.zeros(64)), ("weights_unknown", "base_model")),
        (_with(NORM, torch.zeros(65)), ("weights_shape_mismatch", "base_model")),
        (_with(NORM, torch.full((64,), torch.inf)), ("weights_not_finite", "file")),
        (_with("lm_head.weight", torch.zeros(259, 64)), ("weights_untied", "file")),
    ],
)
def test_whole_weights_that_do_not_fit_are_refused(
    server: TrainingServer,
    run_attempt: RunAttempt,
    base: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    reason: tuple[str, str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(change(load_file(base / "model.safetensors")), path, metadata={"format": "pt"})
    given(server, {"config.json": (base / "config.json").read_bytes(), "model.safetensors": path.read_bytes()})
    assert refused(server, run_attempt) == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rms_norm_eps": 0.1}, ("config_differs", "base_model")),
        ({"model_type": "nobody's"}, ("config_invalid", "file")),
        ({"num_hidden_layers": "two"}, ("config_invalid", "file")),
    ],
)
def test_another_architecture_is_refused(
    server: TrainingServer,
    run_attempt: RunAttempt,
    base: Path,
    changes: dict[str, Any],
    reason: tuple[str, str],
) -> None:
    config = json.loads((base / "config.json").read_text()) | changes
    weights = (base / "model.safetensors").read_bytes()
    given(server, {"config.json": json.dumps(config).encode(), "model.safetensors": weights})
    assert refused(server, run_attempt) == reason


def test_what_cannot_be_unpacked_is_refused(server: TrainingServer, run_attempt: RunAttempt) -> None:
    given(server, {})
    (server.root / "model.tar").write_bytes(b"no tar" * 1000)
    server.spec.model_archive.CopyFrom(server.remote("model.tar"))
    assert refused(server, run_attempt) == ("archive_invalid", "file")


def test_a_machine_that_is_too_small_is_named(
    server: TrainingServer, run_attempt: RunAttempt, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft_adapter(base, tmp_path / "peft", **ADAPTERS["plain"])
    given(server, files_of(tmp_path / "peft"))
    monkeypatch.setattr("tunesmith_trainer.import_run.memory_of", lambda device: (10_000, 10_000))
    assert run_attempt(server) == 71
    assert server.failed is not None
    assert server.failed.failures[0].code == "insufficient_memory"
