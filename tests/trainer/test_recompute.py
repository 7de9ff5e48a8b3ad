"""Layers computed twice: the same loss and gradients, less kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support import tiny_families
from tests.support.adapters import wake
from tunesmith_trainer import lora
from tunesmith_trainer.example import Example
from tunesmith_trainer.model import Hardware, load
from tunesmith_trainer.objectives import score
from tunesmith_trainer.packing import pack
from tunesmith_trainer.preference import PreferenceObjective
from tunesmith_trainer.recompute import recompute

LENGTHS = (40, 20, 30)


def example(row: int, length: int) -> Example:
    return Example(row, tokens(row, length), np.arange(length) % 3 == 2)


def tokens(row: int, length: int) -> NDArray[np.int32]:
    return np.random.default_rng(row).integers(3, 250, length).astype(np.int32)


def model_of(folder: Path, *, full: bool) -> torch.nn.Module:
    model = load(folder, Hardware(torch.device("cpu"), "float32", 128, "a test"))
    if not full:
        lora.attach(model, 4, 8.0, 1)
        wake(model)
    return model


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return found


@pytest.fixture(scope="module", params=tiny_families.FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.build(request.param, tmp_path_factory.mktemp("family") / request.param)


@pytest.mark.parametrize("full", [False, True])
def test_loss_and_gradients_do_not_change(folder: Path, *, full: bool) -> None:
    torch.manual_seed(0)
    model = model_of(folder, full=full)
    (batch,) = pack([example(row, length) for row, length in enumerate(LENGTHS)], 128)
    plain = score(model, batch)
    plain.total.backward()  # type: ignore[no-untyped-call]  # torch
    expected = gradients(model)
    names = list(model.state_dict())

    for layers in (2, 3):
        recompute(model, layers)  # a layer may even be wrapped again
        twice = score(model, batch)
        twice.total.backward()  # type: ignore[no-untyped-call]  # torch
        found = gradients(model)

        assert torch.equal(twice.losses, plain.losses)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert list(model.state_dict()) == names


def test_preferences_too(base: Path) -> None:
    examples = [
        Example(row, tokens(row, length), np.arange(length) % 10 > 4, (10,)) for row, length in enumerate(LENGTHS)
    ]
    (batch,) = pack(examples, 128)
    found: list[dict[str, torch.Tensor]] = []
    for layers in (0, 2):
        torch.manual_seed(0)
        model = model_of(base, full=False)
        objective = PreferenceObjective(0.5)
        objective.observe_base(model, examples, 128, lambda: None)
        recompute(model, layers)
        objective.score(model, batch, examples).total.backward()  # type: ignore[no-untyped-call]  # torch
        found.append(gradients(model))

    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())


def test_only_the_inputs_of_such_layers_are_kept(base: Path) -> None:
    (batch,) = pack([example(1, 100)], 128)
    kept = []
    for layers in (0, 1, 2):
        model = model_of(base, full=False)
        recompute(model, layers)
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = score(model, batch).total
        assert total.requires_grad  # and with it, what was kept is still there
        kept.append(sum(sizes.values()))

    assert kept[0] > 1.5 * kept[1] > 1.5 * kept[2]


def test_evaluation_is_not_touched(base: Path) -> None:
    model = model_of(base, full=False)
    (batch,) = pack([example(1, 100)], 128)
    with torch.inference_mode():
        before = score(model, batch).losses
        recompute(model, 2)
        assert torch.equal(score(model, batch).losses, before)
