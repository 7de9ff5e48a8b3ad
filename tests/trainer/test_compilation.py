"""Compiled layers: the same numbers, one compilation for packs of every shape, no run lost for want of a compiler."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.adapters import wake
from tunesmith_trainer import compilation, lora
from tunesmith_trainer.model import Hardware, load
from tunesmith_trainer.objectives import score
from tunesmith_trainer.packing import pack
from tunesmith_trainer.recompute import recompute
from tunesmith_trainer.rendering import Example

# What torch says of itself when it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

FLOAT32 = Hardware(torch.device("cpu"), "float32", 256, "exact comparison")


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "set by the code under test")  # and set back afterwards
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def made(base: Path, *, full_weights: bool) -> nn.Module:
    model = load(base, FLOAT32)
    if not full_weights:
        lora.attach(model, rank=4, alpha=8, seed=1)
        wake(model, std=0.05)
    return model


def example(row: int, length: int) -> Example:
    tokens = np.random.default_rng(row).integers(0, 200, length).astype(np.int32)
    return Example(row, tokens, np.arange(length) > length // 2)


def gradients(model: nn.Module, lengths: tuple[int, ...], alike: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """With so many tokens at the beginning that are the same in all examples."""
    model.zero_grad()
    examples = [example(row, length) for row, length in enumerate(lengths)]
    for one in examples:
        one.token_ids[:alike] = 7
    (batch,) = pack(examples, sum(lengths), share_up_to=math.inf)
    assert bool(batch.shared) == (alike > 0)
    total = score(model, batch).total
    total.backward()  # type: ignore[no-untyped-call]  # torch
    return total.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("full_weights", [False, True], ids=["lora", "full"])
def test_compiled_layers_give_the_loss_and_gradients_of_plain_ones(
    base: Path, full_weights: bool, tmp_path: Path
) -> None:
    plain, compiled = made(base, full_weights=full_weights), made(base, full_weights=full_weights)

    assert compilation.compile_layers(compiled, tmp_path) is None
    with torch.compiler.set_stance("fail_on_recompile"):  # whatever number of documents of whatever length
        for lengths, alike in (((30, 12, 55), 0), ((64,), 0), ((31, 40, 29), 12), ((5, 6, 7, 8), 0)):
            if len(lengths) == 4:
                recompute(compiled, 1)  # which a run short of memory does with compiled layers too
            wanted_loss, wanted = gradients(plain, lengths, alike)
            loss, found = gradients(compiled, lengths, alike)
            torch.testing.assert_close(loss, wanted_loss, rtol=1e-5, atol=1e-5)
            assert found.keys() == wanted.keys()
            for name, gradient in wanted.items():
                torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)  # of a sum over all tokens


def test_without_a_compiler_the_model_stays_as_it_was(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain, model = made(base, full_weights=False), made(base, full_weights=False)
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nowhere/c++",))

    assert compilation.compile_layers(model, tmp_path)
    assert all(p.grad is None for p in model.parameters())
    wanted_loss, wanted = gradients(plain, (20, 10))
    loss, found = gradients(model, (20, 10))
    assert torch.equal(loss, wanted_loss)
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


def test_short_runs_are_not_compiled(base: Path) -> None:
    model = made(base, full_weights=False)
    parameters = sum(p.numel() for p in model.parameters())

    assert not compilation.pays(model, 10_000)
    assert compilation.pays(model, int(compilation.LEAST_WORK / parameters) + 1)
