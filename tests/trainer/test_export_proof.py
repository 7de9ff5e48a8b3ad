"""What is exported answers as the model did that was trained, and what does not is not delivered."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support import tiny_families
from tests.support.training_server import TrainingServer
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.registry import manifest
from tunesmith_trainer import artifact, export_proof, lora
from tunesmith_trainer.artifact import ArtifactWriter
from tunesmith_trainer.config import Facts, TrainingConfig, Wanted, resolve
from tunesmith_trainer.errors import RunFailed
from tunesmith_trainer.model import Hardware, load, load_for_generation, load_in_four_bits

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
