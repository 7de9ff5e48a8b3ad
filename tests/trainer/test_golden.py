"""Golden answers are what an engine gives: greedy, whatever the model's own settings say, and with room for them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import tiny_families
from tests.support.training_server import TrainingServer
from tests.trainer.conftest import RunAttempt
from tunesmith_trainer.example import Example
from tunesmith_trainer.golden import golden_prompts, greedy
from tunesmith_trainer.model import load_for_generation

CPU = torch.device("cpu")


def example(row: int, prompt: int) -> Example:
    return Example(row, np.full(prompt + 4, row, np.int32), np.arange(prompt + 4) >= prompt)


def test_answers_are_greedy_although_the_model_would_rather_not_repeat_itself(tmp_path: Path) -> None:
    folder = tiny_families.build("llama", tmp_path / "model")
    settings = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 0.1}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = load_for_generation(folder, CPU)
    prompt = [9, 9, 9, 40, 41]
    context = list(prompt)
    with torch.no_grad():
        for _ in range(8):
            context.append(int(model(input_ids=torch.tensor([context])).logits[0, -1].argmax()))

    assert greedy(model, prompt, [])["token_ids"] == context[len(prompt) :]


def test_prompts_are_the_shortest_and_evaluations_first() -> None:
    evaluation, training = [example(1, 30), example(2, 10)], [example(3, 5), example(4, 20)]

    assert [prompt[0] for prompt in golden_prompts(evaluation, training, 512)] == [2, 1, 3]


@pytest.mark.parametrize(("context", "tokens"), [(32, 24), (1024, 512), (8192, 512)])
def test_of_long_prompts_the_beginning_is_taken(context: int, tokens: int) -> None:
    (prompt,) = golden_prompts([example(7, context - 4)], [], context)
    assert len(prompt) == tokens


def test_a_model_whose_positions_end_can_answer_the_longest_prompt(tmp_path: Path) -> None:
    model = load_for_generation(tiny_families.build("gpt2", tmp_path / "model"), CPU)  # 512 positions
    (prompt,) = golden_prompts([example(7, 508)], [], 512)

    assert len(greedy(model, prompt, [])["token_ids"]) == 8


@pytest.mark.parametrize("mixed", [False, True])
def test_prompts_of_completions_are_recorded_with_what_they_stood_in(
    server: TrainingServer, run_attempt: RunAttempt, mixed: bool
) -> None:
    lines = [json.dumps({"prompt": f"Colour {index}?", "completion": "red"}) for index in range(20)]
    if mixed:
        lines[3] = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    (server.root / "train.jsonl").write_text("\n".join(lines))
    server.spec.training_file.CopyFrom(server.remote("train.jsonl"))
    assert run_attempt(server) == 0

    golden = json.loads((server.root / "out/step-10/golden.json").read_text())
    system = "<|im_start|>system\nYou are a test.<|im_end|>\n"
    frame = {"before": f"{system}<|im_start|>user\n", "after": "<|im_end|>\n<|im_start|>assistant\n", "trimmed": False}
    assert golden.get("completion_frame") == (None if mixed else frame)
