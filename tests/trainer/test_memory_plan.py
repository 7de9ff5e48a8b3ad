"""The predicted peak: its largest part is held against what a real step keeps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import imagined_gpu, tiny_families
from tests.support.gpu_memory import CASES
from tunesmith_trainer import lora
from tunesmith_trainer.base_shapes import BaseShapes, build_empty, read_shapes
from tunesmith_trainer.config import Facts, TrainingConfig, Wanted, resolve
from tunesmith_trainer.example import Example
from tunesmith_trainer.memory_plan import _PROCESS, Plan, checkpoint_bytes, largest_step, plan
from tunesmith_trainer.model import Hardware, load
from tunesmith_trainer.objectives import score
from tunesmith_trainer.packing import pack
from tunesmith_trainer.recompute import recompute

TOKENS = 256


@pytest.fixture(scope="module")
def shapes(base: Path) -> BaseShapes:
    return read_shapes(build_empty(base))


def config(*, full: bool, batch_size: int = 1) -> TrainingConfig:
    wanted = Wanted(full_weights=full, seed=1, lora_rank=8, batch_size=batch_size)
    return resolve(wanted, Facts(20, TOKENS, 10, 64, "llama", 512))[0]


def example(tokens: int = TOKENS) -> Example:
    return Example(1, np.arange(tokens, dtype=np.int32) % 50, np.arange(tokens) % 2 == 1)


def planned(
    shapes: BaseShapes,
    *,
    full: bool,
    dtype: str = "float32",
    rows: int = 1,
    batch_size: int = 1,
    recomputed_layers: int = 0,
) -> Plan:
    numbers = config(full=full, batch_size=batch_size)
    step = largest_step(shapes, numbers, [example()] * rows, TOKENS, gpu=False)
    return plan(shapes, numbers, step, dtype, gpu=False, recomputed_layers=recomputed_layers)


@pytest.fixture(scope="module", params=tiny_families.FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.build(request.param, tmp_path_factory.mktemp("family") / request.param)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("recomputed_layers", [0, 1])
def test_activations_are_what_a_real_step_keeps(
    family: Path, *, full: bool, dtype: str, recomputed_layers: int
) -> None:
    shapes = read_shapes(build_empty(family))
    model = load(family, Hardware(torch.device("cpu"), dtype, TOKENS, "a test"))
    if not full:
        lora.attach(model, 8, 16.0, 1)
    recompute(model, recomputed_layers)
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
    foreseen = planned(shapes, full=full, dtype=dtype, recomputed_layers=recomputed_layers).terms["activations"]
    assert foreseen == pytest.approx(sum(kept.values()), rel=0.25)


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    told: dict[str, tuple[int, int]] = imagined_gpu.call(
        "tests.support.gpu_memory", "peaks", tmp_path_factory.mktemp("gpu")
    )
    return told


@pytest.mark.parametrize("case", CASES)
def test_a_step_on_a_gpu_takes_no_more_than_planned_and_not_much_less(
    peaks: dict[str, tuple[int, int]], case: str
) -> None:
    taken, foreseen = peaks[case]
    assert taken <= foreseen <= 1.35 * taken


def test_layers_that_are_computed_twice_keep_their_input_only(shapes: BaseShapes) -> None:
    none, first, both = (planned(shapes, full=True, recomputed_layers=count).terms["activations"] for count in range(3))

    assert none > first
    assert both == first + 4 * TOKENS * shapes.hidden, "one at a time is there as a whole while it goes back"


def test_capped_scores_grow_with_the_square_of_the_longest_row(tmp_path: Path) -> None:
    capped = read_shapes(build_empty(tiny_families.build("gemma2", tmp_path / "gemma2")))
    scores = planned(capped, full=False, rows=2, batch_size=2).terms["scores"]

    assert scores == 16 * 4 * TOKENS**2


def test_a_windows_mask_does_too_on_a_processor_where_a_row_is_longer(shapes: BaseShapes) -> None:
    narrow, wide = (replace(shapes, window=window) for window in (TOKENS - 1, TOKENS))

    assert planned(narrow, full=False).terms["window"] == 6 * TOKENS**2
    assert "window" not in planned(wide, full=False).terms


def test_full_weights_need_their_optimizer_and_lora_hardly_any(shapes: BaseShapes) -> None:
    full, adapters = planned(shapes, full=True), planned(shapes, full=False)

    assert full.terms["optimizer"] == 8 * shapes.parameters
    assert adapters.terms["optimizer"] == 8 * shapes.adapter_parameters(8)
    assert full.needed > adapters.needed


def test_half_precision_keeps_what_it_lacks(shapes: BaseShapes) -> None:
    half = planned(shapes, full=True, dtype="bfloat16")

    assert half.terms["weights"] == 2 * shapes.parameters
    assert half.terms["optimizer"] == 10 * shapes.parameters


def test_a_step_of_several_micro_batches_keeps_gradients_beside_activations(shapes: BaseShapes) -> None:
    one, two = planned(shapes, full=True), planned(shapes, full=True, rows=2, batch_size=2)

    assert two.terms["activations"] == one.terms["activations"]
    assert two.terms["gradients"] == 4 * shapes.parameters


def test_the_largest_terms_come_first(shapes: BaseShapes) -> None:
    sizes = list(planned(shapes, full=True).terms.values())
    assert sizes == sorted(sizes, reverse=True)
    assert planned(shapes, full=True).needed == sum(sizes)


def test_full_weights_are_split_among_ranks_and_adapters_are_not(shapes: BaseShapes) -> None:
    def on(ranks: int, *, full: bool) -> Plan:
        numbers = config(full=full)
        step = largest_step(shapes, numbers, [example()], TOKENS, gpu=True)
        return plan(shapes, numbers, step, "bfloat16", gpu=True, ranks=ranks)

    one, four = on(1, full=True), on(4, full=True)
    assert four.terms["weights"] == one.terms["weights"] // 4
    assert four.terms["optimizer"] == one.terms["optimizer"] // 4
    assert four.terms["gathered"] <= one.terms["weights"]
    assert four.needed < one.needed
    assert on(4, full=False) == on(1, full=False)


@pytest.mark.parametrize(("full", "dtype"), [(False, "bfloat16"), (True, "bfloat16"), (True, "float32")])
def test_a_checkpoint_takes_main_memory_for_its_state_and_where_the_gpu_is_full_for_its_proof(
    shapes: BaseShapes, full: bool, dtype: str
) -> None:
    numbers, count = config(full=full), shapes.parameters
    need = plan(shapes, numbers, largest_step(shapes, numbers, [example()], TOKENS, gpu=True), dtype, gpu=True)
    sizes = (1 << 40, need.terms["process"] + need.terms["weights"])
    roomy, tight = (checkpoint_bytes(shapes, numbers, dtype, need, size) for size in sizes)
    state = count * {"bfloat16": 2 + 10, "float32": 4 + 8}[dtype] * full
    assert (roomy, tight) == (_PROCESS[False] + state, _PROCESS[False] + state + 4 * count)


def test_rows_that_begin_alike_are_expected_to_fill_a_pack(shapes: BaseShapes) -> None:
    """Rows of 150 tokens, 100 of them common: packs of 256 hold one each without, three with what they share."""
    start = np.arange(100)
    alike = [
        Example(row, np.concatenate([start, np.full(50, 100 + row)]).astype(np.int32), np.arange(150) > 120)
        for row in range(20)
    ]
    unlike = [Example(row, (one.token_ids + row).astype(np.int32), one.labelled) for row, one in enumerate(alike)]
    numbers = config(full=False, batch_size=8)
    shared, alone = (largest_step(shapes, numbers, rows, TOKENS, gpu=False) for rows in (alike, unlike))
    needs = [plan(shapes, numbers, step, "float32", gpu=False) for step in (shared, alone)]

    assert (shared.tokens, alone.tokens) == (256, 150)
    assert needs[0].terms["activations"] == needs[1].terms["activations"] * 256 // 150
    on_gpus = [largest_step(shapes, numbers, rows, TOKENS, gpu=True) for rows in (alike, unlike)]
    assert on_gpus[0] == on_gpus[1]
