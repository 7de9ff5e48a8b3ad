"""Compiled layers: the same numbers, one compilation for packs of every shape, no run lost for want of a compiler."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.adapters import wake
from tunesmith_trainer import attention, compilation, lora
from tunesmith_trainer.example import Example
from tunesmith_trainer.model import Hardware, load
from tunesmith_trainer.objectives import score
from tunesmith_trainer.packing import pack
from tunesmith_trainer.recompute import recompute

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
    with torch._dynamo.config.patch(suppress_errors=False):
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


def assert_close(found: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Loss and gradients, which are sums over all tokens."""
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4)


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
            assert_close(gradients(compiled, lengths, alike), gradients(plain, lengths, alike))


@torch.library.custom_op("tests::attention_kernel", mutates_args=())
def attention_kernel(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scale: float
) -> Tensor:
    """What `varlen_attn` is to the compiler: an operator that takes the longest length as a number."""
    assert longest == int(boundaries.diff().max())
    groups = query.shape[1] // key.shape[1]
    return _weights(query, key, boundaries, scale) @ value.repeat_interleave(groups, 1).transpose(0, 1)


@torch.library.custom_op("tests::attention_kernel_backward", mutates_args=())
def attention_kernel_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    weights = _weights(query, key, boundaries, scale)
    wide_key, wide_value = (part.repeat_interleave(groups, 1).transpose(0, 1) for part in (key, value))
    grad_weights = grad @ wide_value.transpose(1, 2)
    grad_scores = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True)) * scale
    grad_key, grad_value = (
        (left.transpose(1, 2) @ right).view(-1, groups, *right.shape[1:]).sum(1).transpose(0, 1).contiguous()
        for left, right in ((grad_scores, query.transpose(0, 1)), (weights, grad))
    )
    return (grad_scores @ wide_key).transpose(0, 1).contiguous(), grad_key, grad_value


@attention_kernel.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape[1], query.shape[0], query.shape[2])


@attention_kernel_backward.register_fake
def _(_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(part.new_empty(part.shape) for part in (query, key, value))  # type: ignore[return-value]


def _weights(query: Tensor, key: Tensor, boundaries: Tensor, scale: float) -> Tensor:
    """(heads, T, T): the softmaxes of causal attention within documents."""
    documents = torch.bucketize(torch.arange(len(query)), boundaries, right=True)
    seen = (documents[:, None] == documents).tril()
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query.transpose(0, 1) @ keys.permute(1, 2, 0) * scale
    return scores.masked_fill(~seen, -math.inf).softmax(-1)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.scale = inputs[5]
    ctx.save_for_backward(*inputs[:4])


attention_kernel.register_autograd(
    lambda ctx, grad: (*attention_kernel_backward(grad, *ctx.saved_tensors, ctx.scale), None, None, None),
    setup_context=_keep,
)


@pytest.mark.parametrize("full_weights", [False, True], ids=["lora", "full"])
def test_so_they_do_with_a_kernel_for_packs_as_gpus_have_it(
    base: Path, full_weights: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain, compiled = made(base, full_weights=full_weights), made(base, full_weights=full_weights)
    lengths = ((30, 12, 55), (64,), (31, 40, 29), (5, 6, 7, 8))
    wanted = [gradients(plain, each) for each in lengths]

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, ends: Tensor, _: Tensor, longest: int, *_more: int, **named: Any
    ) -> Any:
        return attention_kernel(q, k, v, ends, longest, named["scale"]).transpose(0, 1)

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    fits = torch.compiler.assume_constant_result(lambda *_: True)  # type: ignore[no-untyped-call]  # torch
    monkeypatch.setattr(attention, "_fits_kernel", fits)
    assert compilation.compile_layers(compiled, tmp_path) is None
    with torch.compiler.set_stance("fail_on_recompile"):
        for each, expected in zip(lengths, wanted, strict=True):
            assert_close(gradients(compiled, each), expected)


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
