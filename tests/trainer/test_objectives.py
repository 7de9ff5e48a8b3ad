"""The loss: what it must equal, however rows are laid out."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tests.support.adapters import wake
from tunesmith_trainer import lora
from tunesmith_trainer.evaluation import evaluate
from tunesmith_trainer.example import Example, joined
from tunesmith_trainer.model import Hardware, load, load_for_generation
from tunesmith_trainer.objectives import score
from tunesmith_trainer.optim import Optimizer
from tunesmith_trainer.packing import pack

FLOAT32 = Hardware(torch.device("cpu"), "float32", 256, "exact comparison")


def example(row: int, length: int, labelled_from: int) -> Example:
    generator = np.random.default_rng(row)
    labelled = np.arange(length) >= labelled_from
    return Example(row, generator.integers(0, 200, length).astype(np.int32), labelled)


EXAMPLES = [example(1, 30, 20), example(2, 12, 3), example(3, 55, 54), example(4, 21, 1)]


@pytest.fixture(params=["lora", "full"])
def model(request: pytest.FixtureRequest, base: Path) -> nn.Module:
    made = load(base, FLOAT32)
    if request.param == "lora":
        lora.attach(made, rank=4, alpha=8, seed=1)
        wake(made, std=0.05)
    return made


def gradients(model: nn.Module, budget: int, examples: list[Example]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    packs = pack(examples, budget, share_up_to=math.inf)
    labels = sum(len(batch.targets) for batch in packs)
    total = 0.0
    for batch in packs:
        loss = score(model, batch).total / labels
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def alike(row: int, length: int) -> Example:
    """One of many that begin with the same twenty tokens, and are labelled after some of their own."""
    one = example(row, length, 25)
    return replace(one, token_ids=np.concatenate([EXAMPLES[0].token_ids[:20], one.token_ids[20:]]))


ROWS = pytest.mark.parametrize(
    "examples", [EXAMPLES, [alike(row, 28 + row) for row in range(6)]], ids=["unlike", "alike"]
)


@ROWS
@pytest.mark.parametrize("budget", [256, 60])
def test_packing_changes_neither_loss_nor_gradients(model: nn.Module, budget: int, examples: list[Example]) -> None:
    alone_loss, alone = gradients(model, 1, examples)  # one row per micro-batch
    packed_loss, packed = gradients(model, budget, examples)

    assert packed_loss == pytest.approx(alone_loss, rel=1e-5)
    assert alone.keys() == packed.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-4, atol=1e-6)


def test_eight_rows_at_once_equal_eight_rows_one_by_one(model: nn.Module) -> None:
    rows = [example(10 + index, 5 + 7 * index, 2 + 5 * index) for index in range(8)]  # very unequal label counts
    one_by_one_loss, one_by_one = gradients(model, 1, rows)
    at_once_loss, at_once = gradients(model, 4096, rows)

    assert at_once_loss == pytest.approx(one_by_one_loss, rel=1e-5)
    for name, gradient in one_by_one.items():
        torch.testing.assert_close(at_once[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_cross_entropy_of_labelled_tokens(base: Path) -> None:
    model = load(base, FLOAT32)
    reference = _reference_model(base)
    losses = []
    for one in EXAMPLES:
        ids = torch.from_numpy(one.token_ids.astype(np.int64))
        logits = reference(input_ids=ids[None]).logits[0, :-1]
        wanted = torch.from_numpy(one.labelled[1:])
        losses.append(functional.cross_entropy(logits[wanted], ids[1:][wanted], reduction="none"))
    (batch,) = pack(EXAMPLES, 256)

    torch.testing.assert_close(score(model, batch).losses, torch.cat(losses), rtol=1e-4, atol=1e-5)


def test_a_document_does_not_see_its_neighbour(base: Path) -> None:
    model = load(base, FLOAT32)
    other_first = Example(1, (EXAMPLES[0].token_ids + 1).astype(np.int32), EXAMPLES[0].labelled)
    second = []
    for first in (EXAMPLES[0], other_first):
        (batch,) = pack([first, EXAMPLES[1]], 256)
        second.append(score(model, batch).losses[batch.label_counts[0] :])

    assert torch.equal(second[0], second[1])  # not merely close: nothing may leak


def test_of_those_that_begin_alike_none_sees_how_another_goes_on(base: Path) -> None:
    model = load(base, FLOAT32)
    first, second = alike(1, 40), alike(2, 40)
    changed = replace(first, token_ids=np.concatenate([first.token_ids[:20], first.token_ids[20:] + 1]))
    losses = []
    for one in (first, changed):
        (batch,) = pack([one, second], 256, share_up_to=math.inf)
        assert batch.shared
        losses.append(score(model, batch).losses[batch.label_counts[0] :])

    assert torch.equal(losses[0], losses[1])


def test_a_micro_batch_without_labels_adds_nothing(model: nn.Module) -> None:
    silent = Example(9, EXAMPLES[0].token_ids, np.zeros_like(EXAMPLES[0].labelled))
    expected_loss, expected = gradients(model, 1, EXAMPLES)
    loss, found = gradients(model, 1, [EXAMPLES[0], silent, *EXAMPLES[1:]])

    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-8)


def test_tied_embeddings_learn_from_both_their_uses_and_stay_one(base: Path, tmp_path: Path) -> None:
    model: Any = load(base, FLOAT32)
    reference: Any = _reference_model(base)
    for one in EXAMPLES:
        ids = torch.from_numpy(one.token_ids.astype(np.int64))
        wanted = torch.from_numpy(one.labelled[1:])
        logits = reference(input_ids=ids[None]).logits[0, :-1]
        functional.cross_entropy(logits[wanted], ids[1:][wanted], reduction="sum").backward()  # type: ignore[no-untyped-call]  # torch
    (batch,) = pack(EXAMPLES, 256)
    score(model, batch).total.backward()  # type: ignore[no-untyped-call]  # torch
    embeddings = model.get_input_embeddings().weight

    assert embeddings is model.get_output_embeddings().weight
    torch.testing.assert_close(embeddings.grad, reference.get_input_embeddings().weight.grad, rtol=1e-3, atol=1e-4)
    Optimizer(model.named_parameters()).step(1e-2)
    model.save_pretrained(tmp_path)
    kept = load_for_generation(tmp_path, torch.device("cpu"))
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert torch.equal(kept.get_output_embeddings().weight, embeddings)  # type: ignore[operator]  # transformers models have it
    assert torch.equal(kept.get_input_embeddings().weight, embeddings)  # type: ignore[operator]  # as above


@ROWS
def test_half_precision_stays_near_single(base: Path, examples: list[Example]) -> None:
    (batch,) = pack(examples, 256, share_up_to=math.inf)
    exact = score(load(base, FLOAT32), batch).total
    half = score(load(base, Hardware(torch.device("cpu"), "bfloat16", 256, "compared")), batch).total

    assert float(half.detach()) == pytest.approx(float(exact.detach()), rel=0.02)


def _reference_model(base: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@pytest.mark.parametrize("budget", [256, 1])
def test_a_row_of_several_documents_is_measured_as_one_row_however_they_are_packed(
    model: nn.Module, budget: int
) -> None:
    alone = evaluate(model, EXAMPLES, 256, lambda: None)
    (first, both) = evaluate(model, [EXAMPLES[0], joined(EXAMPLES[1:3])], budget, lambda: None)

    assert first.loss == pytest.approx(alone[0].loss, rel=1e-5)
    assert (both.row, both.labels) == (2, alone[1].labels + alone[2].labels)
    assert both.hits == alone[1].hits + alone[2].hits
    assert both.loss * both.labels == pytest.approx(sum(one.loss * one.labels for one in alone[1:3]), rel=1e-5)
