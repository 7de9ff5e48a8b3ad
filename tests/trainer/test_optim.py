"""The optimizer's two homes, beside the parameters and main memory, and its part on each of several ranks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.ranks import Ranks
from tunesmith_trainer import float_halves, sharding
from tunesmith_trainer.model import Hardware, load
from tunesmith_trainer.optim import Optimizer, stepped_at_once

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


def test_parameters_in_half_precision_are_stepped_in_single() -> None:
    """Bit for bit, which rounded ones would not be after the first step; of more rows than are stepped at once."""
    torch.manual_seed(0)
    numbers = {"wide": torch.randn(3 * 1024, 256), "narrow": torch.randn(8), "one": torch.randn(())}
    assert numbers["wide"].numel() > 2 * stepped_at_once(gpu=False)
    halves = {name: nn.Parameter(tensor.bfloat16()) for name, tensor in numbers.items()}
    singles = {name: nn.Parameter(parameter.detach().float()) for name, parameter in halves.items()}
    optimizer, exact = Optimizer(halves.items()), Optimizer(singles.items())
    for seed in range(5):
        torch.manual_seed(seed)
        for name, parameter in halves.items():
            parameter.grad = torch.randn(parameter.shape).bfloat16()
            singles[name].grad = parameter.grad.float()
        assert float(optimizer.step(1e-4)) == pytest.approx(float(exact.step(1e-4)))

    state = optimizer.state()
    for name, parameter in halves.items():
        torch.testing.assert_close(parameter.detach(), singles[name].detach().bfloat16(), rtol=0, atol=0)
        joined = float_halves.join(parameter.detach().reshape(-1), state[f"lower.{name}"].reshape(-1))
        torch.testing.assert_close(joined, singles[name].detach().reshape(-1), rtol=0, atol=0)


def test_what_a_release_before_saved_of_parameters_in_half_precision_is_read() -> None:
    """It kept whole float32 copies beside them."""
    trained = parameters(torch.bfloat16)
    saved = Optimizer(trained.items())
    for seed in range(3):
        step(saved, trained, seed)
    state = {name: tensor.clone() for name, tensor in saved.state().items()}
    for name, parameter in trained.items():
        state[f"master.{name}"] = float_halves.join(parameter.detach(), state.pop(f"lower.{name}"))
    resumed = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in trained.items()}
    optimizer = Optimizer(resumed.items())
    optimizer.load_state(state)

    step(saved, trained, 3)
    step(optimizer, resumed, 3)
    state = optimizer.state()
    for name, tensor in saved.state().items():
        assert torch.equal(state[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_offloaded_optimizer_takes_the_same_steps(dtype: torch.dtype) -> None:
    near, far = parameters(dtype), parameters(dtype)
    beside, offloaded = Optimizer(near.items()), Optimizer(far.items(), offloaded=True)

    for seed in range(5):
        assert step(beside, near, seed) == pytest.approx(step(offloaded, far, seed))
        assert all(parameter.grad is None for parameter in far.values()), "they make room at once"
    for name, parameter in near.items():
        torch.testing.assert_close(far[name], parameter, rtol=0, atol=0)


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
        torch.testing.assert_close(resumed[name], parameter, rtol=0, atol=0)


def _step_on_halves(base: Path, folder: Path, *, sharded: bool) -> tuple[float, dict[str, Tensor]]:
    """Takes a step, another one with the state that one rank saved in the folder, and gives all that is then kept."""
    model: nn.Module = load(base, BFLOAT16)
    if sharded:
        model = sharding.shard(model)
    optimizer = Optimizer(sharding.inner(model).named_parameters())
    norm = _half_step(model, optimizer)
    if not sharded:
        save_file(optimizer.state(), folder / "state.safetensors")
    resumed = Optimizer(sharding.inner(model).named_parameters())
    resumed.load_state(load_file(folder / "state.safetensors"))
    _half_step(model, resumed)
    return norm, {name: tensor.clone() for name, tensor in (sharding.whole_weights(model) | resumed.state()).items()}


def _half_step(model: nn.Module, optimizer: Optimizer) -> float:
    for parameter in sharding.inner(model).parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    return float(optimizer.step(1e-2))


def test_parts_in_half_precision_are_stepped_as_the_whole_is(base: Path, two_ranks: Ranks, tmp_path: Path) -> None:
    norm, whole = _step_on_halves(base, tmp_path, sharded=False)
    (first, joined), (second, _) = two_ranks.run(_step_on_sharded_halves, base, tmp_path)

    assert first == second == pytest.approx(norm, rel=1e-6)
    kept = [name for name in joined if name.startswith("lower.")]
    assert kept
    for name in kept:
        parameter = name.removeprefix("lower.")
        torch.testing.assert_close(_exact(joined, parameter), _exact(whole, parameter))


def _step_on_sharded_halves(base: Path, folder: Path) -> tuple[float, dict[str, Tensor]]:
    return _step_on_halves(base, folder, sharded=True)


def _exact(kept: dict[str, Tensor], name: str) -> Tensor:
    return float_halves.join(kept[name], kept[f"lower.{name}"])
