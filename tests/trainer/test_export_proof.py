"""What is exported answers as the model did that was trained, and what does not is not delivered."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.support import tiny_families
from tests.support.training_server import TrainingServer
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.registry import manifest
from tunesmith_trainer import artifact, export_proof, foreign_weights, lora
from tunesmith_trainer.artifact import ArtifactWriter
from tunesmith_trainer.config import Facts, TrainingConfig, Wanted, resolve
from tunesmith_trainer.errors import RunFailed
from tunesmith_trainer.model import Hardware, load, load_as_stored, load_for_generation, load_in_four_bits

PROMPTS = [[5, 6, 7], [40, 41], [100, 90, 80, 70]]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def trained(folder: Path, *, full: bool, dtype: str = "float32", in_four_bits: bool = False) -> nn.Module:
    """A model that has moved away from its base."""
    loaded = load_in_four_bits if in_four_bits else load
    model = loaded(folder, Hardware(torch.device("cpu"), dtype, 256, "a test"))
    if not full:
        lora.attach(model, 4, 8, 1)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if full or name.endswith("lora_B"):
                parameter.add_(torch.randn_like(parameter), alpha=0.02 if full else 0.1)
    return model


def config(*, full: bool) -> TrainingConfig:
    wanted = Wanted(full_weights=full, seed=1, lora_rank=4, lora_alpha=8, batch_size=1)
    return resolve(wanted, Facts(20, 64, 10, 64, "llama", 512))[0]


def write(base: Path, model: nn.Module, folder: Path, *, full: bool, merged: bool = False) -> None:
    writer = ArtifactWriter(base, "tiny", config(full=full), PROMPTS, [2], merged=merged)
    export_proof.prove(model, *writer.write(model, model.state_dict(), folder))


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.build(request.param, tmp_path_factory.mktemp("family") / request.param)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("full", "merged"), [(False, False), (False, True), (True, False)])
def test_what_was_written_agrees_with_the_model_in_memory(
    family: Path, tmp_path: Path, *, dtype: str, full: bool, merged: bool
) -> None:
    write(family, trained(family, full=full, dtype=dtype), tmp_path, full=full, merged=merged)

    assert (tmp_path / "golden.json").exists()


def test_adapters_are_merged_into_weights_that_are_stored_in_float16(tmp_path: Path) -> None:
    family = tiny_families.build("gpt2", tmp_path / "family")
    path = family / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    write(family, trained(family, full=False), tmp_path / "out", full=False, merged=True)


def test_adapters_on_tuned_weights_keep_what_those_learnt(tmp_path: Path) -> None:
    """On a processor whole weights are trained in float32, whatever the base is stored in."""
    family = stored_in_bfloat16(tiny_families.build("gpt2", tmp_path / "family"))
    write(family, trained(family, full=True), tmp_path / "full", full=True)
    write(tmp_path / "full", trained(tmp_path / "full", full=False), tmp_path / "merged", full=False, merged=True)

    full, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "merged"))
    same = {name for name in full if torch.equal(full[name], merged[name])}
    assert {tensor.dtype for tensor in (full | merged).values()} == {torch.float32}
    assert {"transformer.wte.weight", "transformer.ln_f.weight"} <= same
    assert "transformer.h.0.attn.c_attn.weight" not in same


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_configuration_tells_the_dtype_of_the_weights_beside_it(tmp_path: Path, name: str) -> None:
    family = stored_in_bfloat16(tiny_families.build("llama", tmp_path / "family"), name)
    for dtype in DTYPES:
        write(family, trained(family, full=True, dtype=dtype), tmp_path / dtype, full=True)
    before = json.loads((family / "config.json").read_text())

    assert json.loads((tmp_path / "float32/config.json").read_text()) == before | {name: "float32"}
    assert (tmp_path / "bfloat16/config.json").read_bytes() == (family / "config.json").read_bytes()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "float32").state_dict()
    wanted = load_file(tmp_path / "float32/model.safetensors")
    assert all(torch.equal(plain[tensor], wanted[tensor]) for tensor in wanted)
    foreign_weights.require_same_architecture(tmp_path / "float32", family)


def test_four_bits_are_made_of_what_the_files_hold(tmp_path: Path) -> None:
    family = tiny_families.build("llama", tmp_path / "family")
    shown = Hardware(torch.device("cpu"), "float32", 256, "a test")
    exact = load_in_four_bits(family, shown).state_dict()
    config = json.loads((family / "config.json").read_text())
    (family / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    again = load_in_four_bits(family, shown).state_dict()

    assert all(torch.equal(again[name], tensor) for name, tensor in exact.items())


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        ([torch.bfloat16, torch.float32], torch.float32),
        ([torch.float16, torch.bfloat16], torch.float32),
        ([torch.float16, torch.float16], torch.float16),
        ([torch.float64, torch.bfloat16], torch.float32),
    ],
)
def test_a_model_is_read_in_a_dtype_that_holds_all_that_is_stored(
    tmp_path: Path, dtypes: list[torch.dtype], widest: torch.dtype
) -> None:
    family = stored_in_bfloat16(tiny_families.build("llama", tmp_path / "family"))
    path = family / "model.safetensors"
    tensors = load_file(path)
    cast = {name: tensor.to(dtypes[number % 2]) for number, (name, tensor) in enumerate(tensors.items())}
    save_file(cast, path, metadata={"format": "pt"})

    assert {parameter.dtype for parameter in load_as_stored(family).parameters()} == {widest}


def stored_in_bfloat16(folder: Path, told_as: str = "dtype") -> Path:
    """The model's folder, with weights and configuration as hubs have them."""
    path = folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config | {told_as: "bfloat16"}))
    return folder


def test_only_known_files_of_the_base_go_along(tmp_path: Path) -> None:
    assert {*artifact.TEXTS} == {*manifest.TEXT_FILES, "config.json"}, "as the control plane takes them"
    family = tiny_families.build("llama", tmp_path / "family")
    (family / "eval_results.json").write_text("{}")
    write(family, trained(family, full=True), tmp_path / "out", full=True)
    assert not (tmp_path / "out/eval_results.json").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_trained_on_four_bits_is_proven_there_and_its_golden_answers_are_of_the_whole_weights(
    base: Path, tmp_path: Path, dtype: str
) -> None:
    model = trained(base, full=False, dtype=dtype, in_four_bits=True)
    writer = ArtifactWriter(base, "tiny", config(full=False), PROMPTS, [2], merged=False)
    answers, coarsest = writer.write(model, model.state_dict(), tmp_path, in_four_bits=True)
    export_proof.prove(model, answers, coarsest)

    golden = json.loads((tmp_path / "golden.json").read_text())["prompts"]
    assert [one["logprobs"] for one in golden] != [one["logprobs"] for one in answers]
    whole = load(base, Hardware(torch.device("cpu"), "float32", 256, "a test"))
    lora.attach_saved(whole, tmp_path)
    export_proof.prove(whole, golden, torch.float32)
    with torch.no_grad():
        next(one for name, one in model.named_parameters() if name.endswith("lora_B")).add_(1)
    with pytest.raises(RunFailed, match="do not answer as the trained model does"):
        export_proof.prove(model, answers, coarsest)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own use of transformers
def test_the_adapter_the_merged_weights_and_the_model_in_memory_say_the_same(family: Path, tmp_path: Path) -> None:
    model = trained(family, full=False)
    write(family, model, tmp_path, full=False, merged=True)
    answers = json.loads((tmp_path / "golden.json").read_text())["prompts"]
    adapted = peft.PeftModel.from_pretrained(load_for_generation(family, torch.device("cpu")), tmp_path)

    for answer in answers:
        prompt, tokens = answer["prompt_token_ids"], answer["token_ids"]
        with torch.no_grad():
            logits = adapted(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        own = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert own.tolist() == pytest.approx(answer["logprobs"], abs=1e-4)  # of the merged weights
    export_proof.prove(model, answers, torch.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_of_another_model_are_refused(base: Path, tmp_path: Path, dtype: str) -> None:
    model = trained(base, full=False)
    write(base, model, tmp_path, full=False)
    answers = json.loads((tmp_path / "golden.json").read_text())["prompts"]
    export_proof.prove(model, answers, DTYPES[dtype])

    with pytest.raises(RunFailed) as refused:
        export_proof.prove(load(base, Hardware(torch.device("cpu"), dtype, 256, "untrained")), answers, DTYPES[dtype])
    assert refused.value.problems[0].code == "export_differs"
    with pytest.raises(RunFailed, match="nan nats apart"):
        export_proof.prove(
            model, [answers[0] | {"logprobs": [float("nan")] * len(answers[0]["token_ids"])}], DTYPES[dtype]
        )


def test_one_token_may_be_rounded_further_off_than_all_of_them(base: Path, tmp_path: Path) -> None:
    model = trained(base, full=False, dtype="bfloat16")
    write(base, model, tmp_path, full=False)
    answers = json.loads((tmp_path / "golden.json").read_text())["prompts"]
    answers[0]["logprobs"][0] += 0.8
    export_proof.prove(model, answers, torch.bfloat16)

    for further in ([2.0], [0.8] * 8):
        off = [logprob + more for logprob, more in zip(answers[0]["logprobs"], [*further, *[0.0] * 8], strict=False)]
        with pytest.raises(RunFailed):
            export_proof.prove(model, [answers[0] | {"logprobs": off}], torch.bfloat16)


def test_a_run_whose_files_say_something_else_does_not_succeed(
    server: TrainingServer, run_attempt: Callable[[TrainingServer], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = lora.save

    def save_doubled(model: nn.Module, folder: Path, base_model_id: str) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("lora_B"):
                    parameter.mul_(2)
            saved(model, folder, base_model_id)
            for name, parameter in model.named_parameters():
                if name.endswith("lora_B"):
                    parameter.div_(2)

    monkeypatch.setattr(lora, "save", save_doubled)

    assert run_attempt(server) == 70
    assert server.failed is not None
    assert server.failed.cause == pb.FAILURE_CAUSE_TRAINER
    assert server.failed.failures[0].code == "export_differs"
    assert server.checkpoints == []
    assert server.completed is None
