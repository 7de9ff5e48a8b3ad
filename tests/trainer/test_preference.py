"""Preference tuning: the loss is DPO's, however pairs are packed, and it teaches what is preferred."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tests.support import tiny_model
from tests.support.onlooker import Onlooker
from tunesmith_trainer import lora
from tunesmith_trainer.checkpoint import Progress
from tunesmith_trainer.config import Facts, Wanted, resolve
from tunesmith_trainer.evaluation import summarise
from tunesmith_trainer.example import Example
from tunesmith_trainer.loop import Loop
from tunesmith_trainer.model import Hardware, load
from tunesmith_trainer.optim import Optimizer
from tunesmith_trainer.packing import pack
from tunesmith_trainer.pairs import render_pairs
from tunesmith_trainer.preference import PairScore, PreferenceObjective
from tunesmith_trainer.rendering import Renderer

from .test_pairs import preference_row

FLOAT32 = Hardware(torch.device("cpu"), "float32", 256, "exact comparison")
BETA = 0.3


def pair(row: int, lengths: tuple[int, int], prompt: int) -> Example:
    """Random tokens; the two documents begin with the same prompt."""
    generator = np.random.default_rng(row)
    start = generator.integers(0, 200, prompt)
    documents = [np.concatenate([start, generator.integers(0, 200, length - prompt)]) for length in lengths]
    labelled = np.concatenate([np.arange(length) >= prompt for length in lengths])
    return Example(row, np.concatenate(documents).astype(np.int32), labelled, (lengths[0],))


PAIRS = [pair(1, (30, 22), 8), pair(2, (9, 40), 4), pair(3, (17, 18), 15)]


def documents(one: Example) -> list[tuple[Tensor, Tensor]]:
    """Token ids and labels of the two documents."""
    ends = np.cumsum(one.documents)[:-1]
    ids, labels = np.split(one.token_ids.astype(np.int64), ends), np.split(one.labelled, ends)
    return [(torch.from_numpy(each), torch.from_numpy(mask)) for each, mask in zip(ids, labels, strict=True)]


def plain_logprob(model: nn.Module, ids: Tensor, labelled: Tensor) -> Tensor:
    """Sum over the labels, by one unpacked forward pass that knows nothing of ours."""
    logprobs = model(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
    total: Tensor = logprobs.gather(1, ids[1:, None])[:, 0][labelled[1:]].sum()
    return total


def plain_loss(policy: nn.Module, reference: nn.Module, pairs: list[Example]) -> Tensor:
    """The formula of the paper, pair by pair."""
    losses = []
    for one in pairs:
        (preferred, other) = documents(one)
        with torch.no_grad():
            ahead = plain_logprob(reference, *preferred) - plain_logprob(reference, *other)
        gain = plain_logprob(policy, *preferred) - plain_logprob(policy, *other) - ahead
        losses.append(-functional.logsigmoid(BETA * gain))
    return torch.stack(losses).mean()


def changed_weights(base: Path) -> dict[str, Tensor]:
    """A model that is no longer the base."""
    torch.manual_seed(3)
    model = plain_model(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.state_dict()


def plain_model(base: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@pytest.mark.parametrize("budget", [1, 90, 1000])
def test_loss_and_gradients_are_those_of_the_plain_formula(base: Path, budget: int) -> None:
    objective = PreferenceObjective(BETA)
    model = load(base, FLOAT32)
    objective.observe_base(model, PAIRS, budget, lambda: None)
    changed = changed_weights(base)
    model.load_state_dict(changed)
    total = 0.0
    for batch in pack(PAIRS, budget, share_up_to=math.inf):
        loss = objective.score(model, batch, PAIRS).total / len(PAIRS)
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        total += float(loss.detach())
    policy = plain_model(base)
    policy.load_state_dict(changed)
    expected = plain_loss(policy, plain_model(base), PAIRS)
    expected.backward()  # type: ignore[no-untyped-call]  # torch

    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    for (name, ours), (_, plain) in zip(model.named_parameters(), policy.named_parameters(), strict=True):
        assert ours.grad is not None
        assert plain.grad is not None
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_base_itself_has_gained_nothing(base: Path) -> None:
    model, objective = load(base, FLOAT32), PreferenceObjective(BETA)
    objective.observe_base(model, PAIRS, 256, lambda: None)
    scores = objective.evaluate(model, PAIRS, 256, lambda: None)

    assert [one.loss for one in scores] == pytest.approx([math.log(2)] * 3)
    assert [one.row for one in scores] == [1, 2, 3]
    assert summarise(scores).token_accuracy == 0
    for one, score in zip(PAIRS, scores, strict=True):
        (preferred, other) = documents(one)
        plain = plain_model(base)
        ahead = float((plain_logprob(plain, *preferred) - plain_logprob(plain, *other)).detach())
        assert isinstance(score, PairScore)
        assert score.margin == pytest.approx(ahead, rel=1e-4)
        assert score.exact == (ahead > 0)


def test_pairs_stay_together_in_a_pack() -> None:
    for batch in pack(PAIRS, 60):
        assert batch.members[0::2] == batch.members[1::2]
        assert PreferenceObjective(BETA).count(batch) == len(batch.lengths) // 2


def test_an_answer_shares_its_prompt_with_the_other_one() -> None:
    prompt = len(PAIRS[0].prompt_token_ids)
    (batch,) = pack(PAIRS[:1], 1, share_up_to=math.inf)

    assert batch.shared == ((0, (prompt - 1) // 4 * 4, len(batch.token_ids)),)
    assert batch.tokens == len(PAIRS[0].token_ids)
    assert PreferenceObjective(BETA).count(batch) == 1


@pytest.mark.parametrize("full_weights", [False, True])
def test_what_is_preferred_becomes_likelier(base: Path, full_weights: bool) -> None:
    rows = [preference_row(f"Say {index}", "yes", "no") for index in range(4)]
    rendered = render_pairs(Renderer(tiny_model.tokenizer(), [2]), rows)
    pairs = [one for each in rendered if isinstance(each, list) for one in each]
    wanted = Wanted(
        method="dpo", full_weights=full_weights, seed=1, n_epochs=15, batch_size=2, learning_rate_multiplier=20
    )
    facts = Facts(rows=4, longest=90, labelled=10, hidden_size=64, model_type="llama", max_context_length=512)
    config = resolve(wanted, facts)[0]
    model, objective, host = load(base, FLOAT32), PreferenceObjective(config.beta), Onlooker()
    if not full_weights:
        lora.attach(model, 16, 32, seed=1)
    objective.observe_base(model, pairs, 256, lambda: None)
    before = objective.evaluate(model, pairs, 256, lambda: None)
    trained = Loop(
        model, Optimizer(model.named_parameters()), config, pairs, pairs, 256, host, objective=objective
    ).run(Progress(0, 0, "float32", []))

    assert host.metrics[0].train_loss == pytest.approx(math.log(2), abs=1e-5)
    assert host.metrics[-1].train_loss < 0.5 * math.log(2)
    assert host.metrics[-1].train_mean_token_accuracy == 1.0
    assert host.metrics[-1].full_valid_mean_token_accuracy == 1.0
    for base_score, tuned in zip(before, trained.chosen.rows, strict=True):
        assert isinstance(base_score, PairScore)
        assert isinstance(tuned, PairScore)
        assert tuned.margin > base_score.margin + 1
