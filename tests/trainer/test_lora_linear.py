"""An adapted layer against the plain formula."""

import torch
from torch import nn

from tunesmith_trainer.lora_linear import LoraLinear


def test_gradients_are_those_of_the_plain_formula() -> None:
    torch.manual_seed(0)
    base = nn.Linear(12, 7)
    layer = LoraLinear(base, 3, 6, torch.Generator().manual_seed(1))
    nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 5, 12, requires_grad=True)
    plain = base(x) + 2.0 * (x @ layer.lora_A.t() @ layer.lora_B.t())
    wanted = torch.autograd.grad(plain.square().sum(), [x, layer.lora_A, layer.lora_B])
    own = layer(x)
    found = torch.autograd.grad(own.square().sum(), [x, layer.lora_A, layer.lora_B])

    torch.testing.assert_close(own, plain)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
