"""Weights in parts: each rank holds its share, and what is put together is what was split."""

from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from tests.support.ranks import Ranks
from tests.support.steps import FLOAT32
from tunesmith_trainer import sharding
from tunesmith_trainer.model import load


def _split_and_join(base: Path) -> tuple[int, int, bool, bool]:
    expected = {name: tensor.clone() for name, tensor in load(base, FLOAT32).state_dict().items()}
    model = sharding.shard(load(base, FLOAT32))
    parameters = dict(sharding.inner(model).named_parameters())
    held = 0
    with torch.no_grad():
        for name, parameter in parameters.items():
            assert isinstance(parameter, DTensor)
            held += parameter.to_local().numel()
            parameter.copy_(sharding.part_of(expected[name] + 1, parameter))
    whole = sharding.whole_weights(model)
    same = all(torch.equal(tensor, expected[name] + 1) for name, tensor in whole.items())
    complete = {name for name in expected if name != "lm_head.weight"} <= whole.keys()
    return held, sum(parameter.numel() for parameter in parameters.values()), same, complete


def test_what_is_put_together_is_what_was_split(base: Path, two_ranks: Ranks) -> None:
    (first, total, same, complete), (second, _, _, complete_on_second) = two_ranks.run(_split_and_join, base)

    assert first + second == total
    assert abs(first - second) < total / 100
    assert (same, complete) == (True, True)
    assert not complete_on_second, "only the leader has main memory for a copy"
