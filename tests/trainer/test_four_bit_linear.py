"""Weights in four bits: the levels of the paper, the nearest of them, and products with what they stand for."""

import weakref
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from torch import nn

from tests.support import tiny_families
from tests.support.steps import FLOAT32
from tunesmith_trainer import four_bit_linear, lora
from tunesmith_trainer.four_bit_linear import BYTES_PER_WEIGHT, FourBitLinear, quantise, restore
from tunesmith_trainer.lora_linear import LoraLinear
from tunesmith_trainer.model import Hardware, load, load_for_generation, load_in_four_bits

LEVELS = torch.tensor(four_bit_linear._LEVELS)


def test_the_levels_are_the_quantiles_that_the_paper_defines() -> None:
    """Equally likely parts of a normal distribution on either side of zero, its tails cut off where its authors did."""
    tail, normal = 0.9677083, NormalDist()
    below = [normal.inv_cdf(0.5 + (tail - 0.5) * part / 7) for part in range(8)]
    above = [normal.inv_cdf(0.5 + (tail - 0.5) * part / 8) for part in range(9)]
    quantiles = sorted({*(-one for one in below), *above})

    assert [one / max(above) for one in quantiles] == pytest.approx(LEVELS.tolist(), abs=1e-6)


@pytest.mark.parametrize("shape", [(7, 12), (32, 64), (3, 5)])  # blocks that end within the weight, at its end, past it
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_number_becomes_the_nearest_level_of_its_block(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    found = restore(*quantise(weight), shape, torch.float32).flatten()

    for block, stands_for in zip(weight.float().flatten().split(64), found.split(64), strict=True):  # type: ignore[no-untyped-call]  # torch
        candidates = LEVELS * block.abs().max()
        nearest = candidates[(block[:, None] - candidates).abs().argmin(1)]
        torch.testing.assert_close(stands_for, nearest)


def test_zeros_stay_zeros_and_what_was_restored_is_kept_as_it_is() -> None:
    assert restore(*quantise(torch.zeros(4, 32)), (4, 32), torch.float32).eq(0).all()
    once = restore(*quantise(torch.randn(16, 32)), (16, 32), torch.float32)
    torch.testing.assert_close(restore(*quantise(once), (16, 32), torch.float32), once)


@pytest.mark.parametrize("bias", [False, True])
def test_products_and_gradients_are_those_of_the_weight_that_is_stood_for(*, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 10, bias=bias)
    layer = FourBitLinear(plain)
    with torch.no_grad():
        plain.weight.copy_(restore(layer.codes, layer.scales, (10, 24), torch.float32))
    x = torch.randn(2, 5, 24, requires_grad=True)

    torch.testing.assert_close(layer(x), plain(x))
    (wanted,) = torch.autograd.grad(plain(x).square().sum(), x)
    (found,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(found, wanted)


def test_an_adapter_on_it_learns_as_on_the_weight_that_is_stood_for() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 10)
    base = FourBitLinear(plain)
    with torch.no_grad():
        plain.weight.copy_(restore(base.codes, base.scales, (10, 24), torch.float32))
    layers = [LoraLinear(one, 3, 6, torch.Generator().manual_seed(1)) for one in (base, plain)]
    x = torch.randn(5, 24, requires_grad=True)
    outcomes = []
    for layer in layers:
        with torch.no_grad():
            layer.lora_B.fill_(0.1)
        made = layer(x)
        outcomes.append([made, *torch.autograd.grad(made.square().sum(), [x, layer.lora_A, layer.lora_B])])

    for found, wanted in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_each_weight_is_quantised_on_the_device_once_those_before_it_are_in_four_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = nn.Sequential(nn.Linear(64, 8), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 2))
    plain = [weakref.ref(one) for one in layers.modules() if isinstance(one, nn.Linear)]
    whole: list[int] = []

    def spy(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert weight.is_meta
        # Whoever holds them, inside the model or out of it.
        whole.append(sum(one.weight.is_meta for reference in plain if (one := reference()) is not None))
        return quantise(weight)

    monkeypatch.setattr(four_bit_linear, "quantise", spy)
    four_bit_linear.install(layers, torch.device("meta"))

    assert whole == [1, 1, 1]
    assert all(one.is_meta for one in (*layers.buffers(), *layers.parameters()))


@pytest.mark.parametrize("family", [name for name in tiny_families.FAMILIES if name != "gpt2"])
def test_a_model_in_four_bits_is_small_and_adapted_in_the_same_places(family: str, tmp_path: Path) -> None:
    folder = tiny_families.build(family, tmp_path / family)
    whole, small = load(folder, FLOAT32), load_in_four_bits(folder, FLOAT32)
    names = lora.adaptable(whole)

    assert lora.adaptable(small) == names
    held = [tensor for name in names for tensor in small.get_submodule(name).buffers()]
    weights = sum(parameter.numel() for name in names for parameter in [whole.get_parameter(f"{name}.weight")])
    assert sum(tensor.nbytes for tensor in held) == pytest.approx(weights * BYTES_PER_WEIGHT)


def test_the_model_that_answers_for_it_computes_with_the_same_weights(base: Path) -> None:
    small = load_in_four_bits(base, Hardware(torch.device("cpu"), "bfloat16", 256, "a test"))
    rounded = load_for_generation(base, torch.device("cpu"), as_four_bits=True)

    for name in lora.adaptable(rounded):
        layer = small.get_submodule(name)
        assert isinstance(layer, FourBitLinear)
        weight = rounded.get_parameter(f"{name}.weight")
        restored = restore(layer.codes, layer.scales, (layer.out_features, layer.in_features), torch.float32)
        torch.testing.assert_close(weight.detach(), restored, rtol=0, atol=0)


def test_only_scales_stay_in_float32_where_a_run_computes_in_half_of_it(base: Path) -> None:
    model = load_in_four_bits(base, Hardware(torch.device("cpu"), "bfloat16", 256, "a test"))

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    scales = {name: one for name, one in model.named_buffers() if name.endswith("scales")}
    assert scales
    assert {one.dtype for one in scales.values()} == {torch.float32}
