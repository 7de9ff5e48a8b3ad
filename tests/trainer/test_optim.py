"""The optimizer's two homes, beside the parameters and main memory, and its part on each of several ranks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.ranks import Ranks
from tunesmith_trainer import sharding
from tunesmith_trainer.model import Hardware, load
from tunesmith_trainer.optim import Optimizer

BFLOAT16 = Hardware(torch.device("cpu"), "bfloat16", 256, "a test")


def parameters(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {"first": nn.Parameter(torch.randn(8, 4).to(dtype)), "second": nn.Parameter(torch.randn(8).to(dtype))}


def step(optimizer: Optimizer, trained: dict[str, nn.Parameter], seed: int) -> float:
    torch.manual_seed(seed)
    for parameter in trained.values():
        parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
    return float(optimizer.step(1e-2))


def test_steps_are_adamw_as_it_is_written_without_decay_on_gradients_clipped_to_a_norm_of_one() -> None:
    """Loshchilov and Hutter (2019), algorithm 2, with betas of 0.9 and 0.999."""
    trained = parameters(torch.float32)
    wanted = {name: parameter.detach().clone().double() for name, parameter in trained.items()}
    first = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    second = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    optimizer = Optimizer(trained.items())

    for number, size in enumerate((3.0, 1e-3, 1.0), start=1):
        gradients = {name: torch.full_like(tensor, size) for name, tensor in wanted.items()}
        for name, parameter in trained.items():
            parameter.grad = gradients[name].float()
        norm = optimizer.step(1e-2)
        whole = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
        assert float(norm) == pytest.approx(float(whole))
        for name, gradient in gradients.items():
            clipped = gradient / max(1.0, float(whole))
            first[name] = 0.9 * first[name] + 0.1 * clipped
            second[name] = 0.999 * second[name] + 0.001 * clipped**2
            corrected = (second[name] / (1 - 0.999**number)).sqrt() + 1e-8
            wanted[name] -= 1e-2 * first[name] / (1 - 0.9**number) / corrected
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.detach().double(), wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_offloaded_optimizer_takes_the_same_steps(dtype: torch.dtype) -> None:
    near, far = parameters(dtype), parameters(dtype)
    beside, offloaded = Optimizer(near.items()), Optimizer(far.items(), offloaded=True)

    for seed in range(5):
        assert step(beside, near, seed) == pytest.approx(step(offloaded, far, seed))
        assert all(parameter.grad is None for parameter in far.values()), "they make room at once"
    for name, parameter in near.items():
        torch.testing.assert_close(far[name], parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("saved_offloaded", "resumed_offloaded"), [(False, True), (True, True), (True, False)])
def test_a_run_that_moves_between_them_goes_on_where_it_was(
    dtype: torch.dtype, *, saved_offloaded: bool, resumed_offloaded: bool
) -> None:
    trained = parameters(dtype)
    saved = Optimizer(trained.items(), offloaded=saved_offloaded)
    for seed in range(3):
        step(saved, trained, seed)
    state = {name: tensor.clone() for name, tensor in saved.state().items()}
    resumed = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in trained.items()}
    optimizer = Optimizer(resumed.items(), offloaded=resumed_offloaded)
    optimizer.load_state(state)

    step(saved, trained, 3)
    step(optimizer, resumed, 3)
    for name, parameter in trained.items():
        torch.testing.assert_close(resumed[name], parameter)


def _step_on_halves(base: Path, *, sharded: bool) -> tuple[float, dict[str, Tensor]]:
    model: nn.Module = load(base, BFLOAT16)
    if sharded:
        model = sharding.shard(model)
    inner = sharding.inner(model)
    optimizer = Optimizer(inner.named_parameters())
    for parameter in inner.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    norm = optimizer.step(1e-2)
    return float(norm), {name: tensor.clone() for name, tensor in sharding.whole_weights(model).items()}


def test_parts_in_half_precision_are_stepped_as_the_whole_is(base: Path, two_ranks: Ranks) -> None:
    norm, whole = _step_on_halves(base, sharded=False)
    (first, joined), (second, _) = two_ranks.run(_step_on_sharded_halves, base)

    assert first == second == pytest.approx(norm, rel=1e-6)
    assert joined
    for name, tensor in joined.items():
        torch.testing.assert_close(tensor, whole[name])


def _step_on_sharded_halves(base: Path) -> tuple[float, dict[str, Tensor]]:
    return _step_on_halves(base, sharded=True)
