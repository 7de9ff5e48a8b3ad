"""The adapter on disk is PEFT's: the real PEFT must load it and compute the same."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.support.adapters import wake
from tunesmith_trainer import lora
from tunesmith_trainer.model import load_for_generation


def trained(base: Path, seed: int = 3) -> nn.Module:
    model = load_for_generation(base, torch.device("cpu"))
    lora.attach(model, rank=4, alpha=8, seed=seed)
    wake(model, seed=seed)
    return model


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own use of transformers
def test_peft_loads_the_adapter_and_gives_the_same_logits(base: Path, tmp_path: Path) -> None:
    model = trained(base)
    lora.save(model, tmp_path, "tiny")
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (1, 40)))
    with torch.no_grad():
        untuned = reference(input_ids=ids).logits
        ours = model(input_ids=ids).logits
        theirs = peft.PeftModel.from_pretrained(reference, tmp_path)(input_ids=ids).logits

    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - untuned).abs().max() > 0.1


def test_a_saved_adapter_comes_back_bit_by_bit(base: Path, tmp_path: Path) -> None:
    model, other = trained(base, seed=3), trained(base, seed=4)
    lora.save(model, tmp_path, "tiny")
    lora.load(other, tmp_path)

    for (name, before), (_, after) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(before, after), name


def test_an_adapter_of_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    lora.save(trained(base), tmp_path, "tiny")
    other = load_for_generation(base, torch.device("cpu"))
    lora.attach(other, rank=8, alpha=8, seed=1)

    with pytest.raises(ValueError, match="does not fit"):
        lora.load(other, tmp_path)


def test_only_adapters_are_trained_and_the_head_has_none(base: Path) -> None:
    model = load_for_generation(base, torch.device("cpu"))
    names = lora.attach(model, rank=4, alpha=8, seed=1)

    assert len(names) == 2 * 7
    assert not any("lm_head" in name for name in names)
    assert all(".lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_fresh_adapters_change_nothing(base: Path) -> None:
    model = load_for_generation(base, torch.device("cpu"))
    ids = torch.arange(30)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        lora.attach(model, rank=4, alpha=8, seed=1)
        after = model(input_ids=ids).logits

    assert torch.equal(before, after)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own use of transformers
def test_fresh_adapters_are_drawn_as_peft_draws_them(base: Path) -> None:
    model = load_for_generation(base, torch.device("cpu"))
    lora.attach(model, rank=64, alpha=64, seed=1)
    peft_model: nn.Module = peft.get_peft_model(
        load_for_generation(base, torch.device("cpu")), peft.LoraConfig(r=64, target_modules="all-linear")
    )
    theirs = [p for name, p in peft_model.named_parameters() if ".lora_A." in name]
    ours = [p for name, p in model.named_parameters() if name.endswith(".lora_A")]

    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        bound = own.shape[1] ** -0.5
        for drawn in (own, other):  # 4,096 numbers and more, uniform up to the bound
            assert bound * 0.99 < drawn.detach().abs().max().item() <= bound
            assert drawn.detach().std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_configuration_is_a_plain_lora(base: Path, tmp_path: Path) -> None:
    lora.save(trained(base), tmp_path, "tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text())

    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 8, "none")
    assert config["base_model_name_or_path"] == "tiny"
    assert config["modules_to_save"] is None
    assert not config["use_dora"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(("alpha", "written"), [(16.0, "16"), (16, "16"), (0.5, "0.5")])
def test_a_whole_alpha_is_written_as_a_whole_number(base: Path, tmp_path: Path, alpha: float, written: str) -> None:
    model = load_for_generation(base, torch.device("cpu"))
    lora.attach(model, 4, alpha, 1)
    lora.save(model, tmp_path, "tiny")
    assert f'"lora_alpha": {written},' in (tmp_path / "adapter_config.json").read_text()

    again = load_for_generation(base, torch.device("cpu"))
    lora.attach_saved(again, tmp_path)
    assert lora.describe(again, "tiny")["lora_alpha"] == alpha


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own use of transformers
def test_a_whole_model_has_the_gradients_that_peft_has(base: Path, tmp_path: Path) -> None:
    model = trained(base)
    lora.save(model, tmp_path, "tiny")
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path, is_trainable=True)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 200, (1, 40)))
    model(input_ids=ids, labels=ids).loss.backward()
    theirs(input_ids=ids, labels=ids).loss.backward()
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}

    checked = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = wanted[f"base_model.model.{name}.default.weight"]
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
            checked += 1
    assert checked == 2 * 2 * 7
