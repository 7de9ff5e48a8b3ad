"""Linear layers by our own products: torch's numbers and gradients, under the same names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.steps import FLOAT32
from tunesmith_trainer import processor_linear, products
from tunesmith_trainer.model import load


@pytest.fixture(autouse=True)
def _by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "uses_onednn", lambda: True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_output_and_gradients_are_those_of_the_plain_layer(bias: bool, frozen: bool) -> None:
    plain = nn.Linear(33, 5, bias=bias).requires_grad_(not frozen)
    ours = processor_linear.ProcessorLinear(plain)
    x = torch.randn(2, 7, 33, requires_grad=True)

    wanted = torch.autograd.grad(plain(x).square().sum(), [x, *(() if frozen else plain.parameters())])
    found = torch.autograd.grad(ours(x).square().sum(), [x, *(() if frozen else ours.parameters())])

    torch.testing.assert_close(ours(x), plain(x))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_layers_are_replaced_where_they_stand_and_keep_their_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2, bias=False)))
    before = dict(model.named_parameters())

    processor_linear.install(model)

    assert {name: id(parameter) for name, parameter in model.named_parameters()} == {
        name: id(parameter) for name, parameter in before.items()
    }
    assert isinstance(model.get_submodule("1.1"), processor_linear.ProcessorLinear)
    torch.library.opcheck(torch.ops.tunesmith.linear, (torch.randn(3, 3), before["0.weight"], before["0.bias"]))


def test_only_a_run_that_computes_on_the_processor_has_them(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are split among GPUs lie in main memory first."""
    monkeypatch.setattr("tunesmith_trainer.model.uses_onednn", lambda: True)
    on_gpu = replace(FLOAT32, device=torch.device("cuda"))
    models = {"processor": load(base, FLOAT32), "gpu": load(base, on_gpu, into=torch.device("cpu"))}

    having = {
        name: any(isinstance(module, processor_linear.ProcessorLinear) for module in model.modules())
        for name, model in models.items()
    }
    assert having == {"processor": True, "gpu": False}
