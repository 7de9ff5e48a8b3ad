"""An adapter that could not be served is refused before it is trained."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support import tiny_families
from tunesmith_trainer import lora
from tunesmith_trainer.adapter_check import adapter_problems
from tunesmith_trainer.base_shapes import build_empty, read_shapes, stored_shapes
from tunesmith_trainer.config import Facts, TrainingConfig, Wanted, resolve


def config(*targets: str) -> TrainingConfig:
    return resolve(Wanted(full_weights=False, seed=1, lora_targets=targets), Facts(20, 50, 10, 64, "llama", 512))[0]


def test_the_tiny_base_takes_adapters_on_all_its_layers(base: Path) -> None:
    assert adapter_problems(base, build_empty(base), config(), merged=False) == []


def test_weights_that_do_not_fit_their_configuration_are_found(base: Path, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "own")
    settings = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(settings | {"intermediate_size": 96}))
    (problem,) = adapter_problems(own, build_empty(own), config(), merged=False)

    assert (problem.code, problem.param) == ("adapter_shape_mismatch", "model")
    assert "gate_proj" in problem.message


def test_names_may_have_one_part_more_or_less(base: Path, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "own")
    weights = load_file(own / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in weights.items()}, own / "model.safetensors")

    assert adapter_problems(own, build_empty(own), config(), merged=False) == []


def test_without_stored_weights_the_configuration_is_believed(base: Path, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "own", ignore=shutil.ignore_patterns("*.safetensors"))

    assert stored_shapes(own) == {}
    assert adapter_problems(own, build_empty(own), config(), merged=False) == []


def test_layers_that_engines_do_not_adapt_are_named(base: Path) -> None:
    model = build_empty(base)
    model.add_module("strange", nn.Linear(4, 4, device="meta"))
    problems = adapter_problems(base, model, config(), merged=False)

    assert "strange" in problems[0].message
    assert problems[0].code == "adapter_targets_unsupported"


def test_targets_that_do_not_exist_are_told_with_those_that_do(base: Path) -> None:
    (problem,) = adapter_problems(base, build_empty(base), config("attention", "gate_up_proj", "lm_head"), merged=False)

    assert (problem.code, problem.param) == ("unknown_lora_target", "training.lora_targets")
    assert "gate_up_proj, lm_head" in problem.message
    assert "down_proj, gate_proj, k_proj" in problem.message


def test_transposed_layers_fit_and_are_served_merged(tmp_path: Path) -> None:
    folder = tiny_families.build("gpt2", tmp_path)

    assert adapter_problems(folder, build_empty(folder), config(), merged=True) == []
    (problem,) = adapter_problems(folder, build_empty(folder), config(), merged=False)
    assert problem.code == "adapter_targets_unsupported"


def test_an_empty_model_has_the_shapes_of_the_real_one(base: Path) -> None:
    empty = build_empty(base)
    shapes, stored = read_shapes(empty), stored_shapes(base)

    assert all(parameter.device == torch.device("meta") for parameter in empty.parameters())
    assert shapes.parameters == sum(torch.Size(shape).numel() for shape in stored.values())
    assert {f"{name}.weight": shape for name, shape in shapes.linears.items()}.items() <= stored.items()
    assert (shapes.hidden, shapes.queries, shapes.keys, shapes.layers) == (64, 64, 32, 2)
    lora.attach(empty, 8, 16.0, 1)
    assert shapes.adapter_parameters(8) == sum(tensor.numel() for tensor in lora.tensors(empty).values())
