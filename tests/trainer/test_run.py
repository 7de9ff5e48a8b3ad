"""Whole runs against a control plane that speaks the real contract."""

import json
from collections.abc import Callable

from tests.support.training_server import TrainingServer

RunAttempt = Callable[[TrainingServer], int]


def test_a_run_reports_every_step_commits_each_pass_and_completes(
    server: TrainingServer, run_attempt: RunAttempt
) -> None:
    assert run_attempt(server) == 0

    assert [one.step for one in server.metrics] == list(range(1, 11))
    assert [commit.step for commit in server.checkpoints] == [5, 10]
    assert server.metrics[-1].HasField("full_valid_loss")
    completed = server.completed
    assert completed is not None
    assert completed.artifact == server.checkpoints[-1].artifact
    assert completed.trained_tokens == sum(one.tokens for one in server.metrics)
    assert completed.evaluation.rows == 2
    assert completed.evaluation.held_out_from_training
    assert server.metrics[-1].train_loss < server.metrics[0].train_loss
    names = {file.path for file in completed.artifact.files}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "golden.json"}
    golden = json.loads((server.root / "out/step-10/golden.json").read_text())
    assert len(golden["prompts"]) == 3
    csv_lines = (server.root / "out/results.csv").read_text().splitlines()
    assert csv_lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert len(csv_lines) == 11
    assert len((server.root / "out/evaluation.jsonl").read_text().splitlines()) == 2
