"""Learning itself: a few rows can be learnt by heart, and a learnt answer stops."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support import tiny_model
from tests.support.onlooker import Onlooker
from tunesmith_trainer import lora
from tunesmith_trainer.artifact import greedy
from tunesmith_trainer.checkpoint import Progress
from tunesmith_trainer.config import Facts, Wanted, resolve
from tunesmith_trainer.data import Message, Row
from tunesmith_trainer.evaluation import evaluate, flips, summarise
from tunesmith_trainer.loop import Loop
from tunesmith_trainer.model import Hardware, load, load_for_generation
from tunesmith_trainer.optim import Optimizer
from tunesmith_trainer.rendering import Renderer

FLOAT32 = Hardware(torch.device("cpu"), "float32", 256, "exact comparison")


def question(text: str, answer: str) -> Row:
    return Row(1, "training_file", (Message("user", text, 0, {}), Message("assistant", answer, 1, {})), None)


@pytest.mark.parametrize("full_weights", [False, True])
def test_rows_learnt_by_heart_are_answered_exactly_and_the_answer_stops(
    base: Path, tmp_path: Path, full_weights: bool
) -> None:
    renderer = Renderer(tiny_model.tokenizer(), [2])
    answers = ["red", "blue", "green"]
    examples = [renderer.render(question(str(index) * 20, answer)) for index, answer in enumerate(answers, start=1)]
    wanted = Wanted(full_weights=full_weights, seed=1, n_epochs=60, batch_size=3, learning_rate_multiplier=5)
    facts = Facts(rows=3, longest=90, hidden_size=64, model_type="llama", max_context_length=512)
    config = resolve(wanted, facts)[0]
    model = load(base, FLOAT32)
    if not full_weights:
        lora.attach(model, 16, 32, seed=1)
    before = evaluate(model, examples, 256, lambda: None)
    host = Onlooker()
    trained = Loop(model, Optimizer(model.named_parameters()), config, examples, examples, 256, host).run(
        Progress(0, 0, "float32", [])
    )

    assert summarise(trained.chosen.rows).exact_match == 1.0
    assert [flip.right for flip in flips(before, trained.chosen.rows)] == [True] * 3
    assert host.saved == list(range(1, 61))
    served = load_for_generation(base, torch.device("cpu"))
    if full_weights:
        served.load_state_dict(model.state_dict())
    else:
        lora.save(model, tmp_path, "tiny")
        lora.attach(served, 16, 32, seed=9)
        lora.load(served, tmp_path)
    for example, answer in zip(examples, answers, strict=True):
        said = greedy(served, example.prompt_token_ids, [2], tokens=20)["token_ids"]
        assert tiny_model.tokenizer().decode(said) == f"{answer}<|im_end|>"


def test_an_exact_match_means_the_greedy_answer_is_the_label(base: Path) -> None:
    """Teacher-forced agreement at every labelled position, held against real generation."""
    model = load_for_generation(base, torch.device("cpu"))
    renderer = Renderer(tiny_model.tokenizer(), [2])
    prompt = renderer.render(question("x", "y"))
    said = greedy(model, prompt.prompt_token_ids, [2], tokens=5)["token_ids"]
    ids = torch.tensor([*prompt.prompt_token_ids, *said], dtype=torch.int32).numpy()
    label = torch.arange(len(ids)).numpy() >= len(prompt.prompt_token_ids)
    right = replace(prompt, token_ids=ids, labelled=label)
    wrong_ids = ids.copy()
    wrong_ids[-1] = (wrong_ids[-1] + 1) % 200
    scores = evaluate(load(base, FLOAT32), [right, replace(right, token_ids=wrong_ids)], 256, lambda: None)

    assert [score.exact for score in scores] == [True, False]
