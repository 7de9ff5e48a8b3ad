"""The predicted peak: its largest part is held against what a real step keeps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tunesmith_trainer import lora
from tunesmith_trainer.base_shapes import BaseShapes, build_empty, read_shapes
from tunesmith_trainer.config import Facts, TrainingConfig, Wanted, resolve
from tunesmith_trainer.memory_plan import Plan, plan
from tunesmith_trainer.model import Hardware, load
from tunesmith_trainer.objectives import score
from tunesmith_trainer.packing import pack
from tunesmith_trainer.rendering import Example

TOKENS = 256


@pytest.fixture(scope="module")
def shapes(base: Path) -> BaseShapes:
    return read_shapes(build_empty(base))


def config(*, full: bool, batch_size: int = 1) -> TrainingConfig:
    wanted = Wanted(full_weights=full, seed=1, lora_rank=8, batch_size=batch_size)
    return resolve(wanted, Facts(20, TOKENS, 64, "llama", 512))[0]


def example(tokens: int = TOKENS) -> Example:
    return Example(1, np.arange(tokens, dtype=np.int32) % 50, np.arange(tokens) % 2 == 1)


def planned(shapes: BaseShapes, *, full: bool, dtype: str = "float32", rows: int = 1, batch_size: int = 1) -> Plan:
    examples = [example()] * rows
    return plan(shapes, config(full=full, batch_size=batch_size), examples, dtype, TOKENS, gpu=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("full", [False, True])
def test_activations_are_what_a_real_step_keeps(base: Path, shapes: BaseShapes, *, full: bool, dtype: str) -> None:
    model = load(base, Hardware(torch.device("cpu"), dtype, TOKENS, "a test"))
    if not full:
        lora.attach(model, 8, 16.0, 1)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    (batch,) = pack([example()], TOKENS)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = score(model, batch).total

    assert total.requires_grad  # and with it, what was kept is still there
    assert planned(shapes, full=full, dtype=dtype).terms["activations"] == pytest.approx(sum(kept.values()), rel=0.3)


def test_full_weights_need_their_optimizer_and_lora_hardly_any(shapes: BaseShapes) -> None:
    full, adapters = planned(shapes, full=True), planned(shapes, full=False)

    assert full.terms["optimizer"] == 8 * shapes.parameters
    assert adapters.terms["optimizer"] == 8 * shapes.adapter_parameters(8)
    assert full.needed > adapters.needed


def test_half_precision_keeps_master_copies(shapes: BaseShapes) -> None:
    half = planned(shapes, full=True, dtype="bfloat16")

    assert half.terms["weights"] == 2 * shapes.parameters
    assert half.terms["optimizer"] == 12 * shapes.parameters


def test_a_step_of_several_micro_batches_keeps_gradients_beside_activations(shapes: BaseShapes) -> None:
    one, two = planned(shapes, full=True), planned(shapes, full=True, rows=2, batch_size=2)

    assert two.terms["activations"] == one.terms["activations"]
    assert two.terms["gradients"] == 4 * shapes.parameters


def test_the_largest_terms_come_first(shapes: BaseShapes) -> None:
    sizes = list(planned(shapes, full=True).terms.values())
    assert sizes == sorted(sizes, reverse=True)
    assert planned(shapes, full=True).needed == sum(sizes)
